"""How a job is split, as people write it, to the messages of the contract."""

import re
from collections.abc import Mapping

from khomas.api.scheduler.v1 import splitter_pb2
from khomas.client.document import Document
from khomas.client.errors import UsageError
from khomas.client.units import MOST_INT32, count, size

_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(\d+))?")
# Begins like a range, and is none of whole numbers.
_NO_RANGE = re.compile(r"\s*-?\d[\d.e+]*\.\.")


def splitter(document: Document) -> splitter_pb2.Splitter:
    """Read how a job is split."""
    made = splitter_pb2.Splitter(
        max_running=document.whole("max_running"),
        max_jobs=document.whole("max_jobs"),
    )
    if document.take("grid") is not None:
        made.grid.CopyFrom(grid(document))
    if document.take("count") is not None:
        made.count.count = count(document.take("count"), "count", MOST_INT32)
    if (files := document.inner("files")) is not None:
        made.files.files_per_job = files.whole("per_job", 1)
        made.files.group_key = files.text("group_by")
        if files.take("by_site", False):
            made.files.grouping = splitter_pb2.FileSplitter.GROUPING_BY_SITE
        if (most := files.take("bytes_per_job")) is not None:
            made.files.bytes_per_job = size(most, "bytes_per_job")
        made.files.SetInParent()
        files.done()
    for one in document.list("args"):
        made.args.sets.append(_arguments(one))
    document.done()
    if made.WhichOneof("kind") is None:
        raise UsageError(f"{document.place}: name one of grid, count, files, args")
    return made


def _arguments(one: object) -> splitter_pb2.ArgSet:
    if isinstance(one, Mapping):
        return splitter_pb2.ArgSet(parameters={str(key): str(value) for key, value in one.items()})
    words = one if isinstance(one, list) else [one]
    return splitter_pb2.ArgSet(arguments=[str(word) for word in words])


def grid(document: Document) -> splitter_pb2.GridSplitter:
    """Read the keys grid, derive and filter."""
    made = splitter_pb2.GridSplitter(filter=document.text("filter"))
    axes = document.take("grid")
    if not isinstance(axes, Mapping):
        raise UsageError(f"{document.place}: grid takes axes: {{zenith: [0, 18, 60], seed: 1..100}}")
    made.axes.extend(axis(str(name), values) for name, values in axes.items())
    for name, expression in document.texts("derive").items():
        made.derived.add(name=name, expression=expression)
    return made


def axis(name: str, values: object) -> splitter_pb2.Axis:
    """Read an axis: a list, "1..100", "0..90..5" or, from a command line, "0,18,60"."""
    made = splitter_pb2.Axis(name=name)
    if isinstance(values, str) and (found := _RANGE.fullmatch(values)):
        first, last, step = int(found[1]), int(found[2]), int(found[3] or 1)
        made.range.CopyFrom(splitter_pb2.IntegerRange(first=first, last=last, step=step))
        return made
    if isinstance(values, str):
        values = [_plain(name, word) for word in values.split(",")]
    for value in values if isinstance(values, list) else [values]:
        one = made.values.add()
        if isinstance(value, bool):
            one.bool_value = value
        elif isinstance(value, int | float):
            one.number_value = value
        else:
            one.string_value = str(value)
    return made


def _plain(name: str, word: str) -> float | str:
    if not word or _NO_RANGE.match(word):
        raise UsageError(f"grid: {name}={word} is no value and no range, such as {name}=0,18,60 or {name}=0..90..5")
    try:
        return float(word)
    except ValueError:
        return word
