"""Reads what `khomas_pod.py` brings out by the log of a pod."""

import base64
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from khomas.scheduler.backends.interface import Chunk

_PIECE = re.compile(rb"(?m)^#khomas (\S+) (\d+) (\d+)\n")
_PEEK_BYTES = 1 << 20


def pieces(log: bytes, name: str) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of the pieces of a stream or file. What was printed looks like none: it is skipped by length."""
    place = 0
    while found := _PIECE.search(log, place):
        end = found.end() + int(found[3])
        if found[1] == name.encode():
            yield int(found[2]), log[found.end() : end]
        place = end


def part(log: bytes, stream: str, offset: int, limit: int) -> Chunk:
    """A part of a stream; of one whose beginning the cluster has not kept, from where it has it."""
    have = list(pieces(log, stream))
    if not have:
        return Chunk(0, b"", 0)
    first, (last, end) = have[0][0], have[-1]
    size = last + len(end)
    start = max(first, size + offset if offset < 0 else min(offset, size))
    data = b"".join(one for _, one in have)[start - first :]
    return Chunk(start, data[: min(limit, _PEEK_BYTES)], size)


def file(log: bytes, location: str) -> bytes | None:
    """A file; None when not all of it is there."""
    content = b""
    for offset, encoded in pieces(log, quote(location)):
        if offset != len(content):
            return None
        try:
            content += base64.b64decode(encoded, validate=True)
        except ValueError:
            return None
    return content


def record(log: bytes) -> Mapping[str, Any] | None:
    """The exit record; None when the log ends without."""
    for _, encoded in pieces(log, "record"):
        try:
            found = json.loads(base64.b64decode(encoded, validate=True))
        except ValueError:
            return None
        return found if isinstance(found, Mapping) else None
    return None
