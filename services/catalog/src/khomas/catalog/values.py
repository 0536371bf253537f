"""Metadata values between the contract, Python and the columns of a value table."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from khomas.api.catalog.v1.dataset_pb2 import MetadataKey
from khomas.api.common.v1.value_pb2 import Value
from khomas.catalog.errors import MetadataType

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_MAX_TEXT = 1024

# Which column holds values of a type, and which kinds of Value it takes.
COLUMN: Mapping[int, str] = {
    MetadataKey.TYPE_TEXT: "text",
    MetadataKey.TYPE_INTEGER: "whole",
    MetadataKey.TYPE_NUMBER: "number",
    MetadataKey.TYPE_BOOLEAN: "whole",
    MetadataKey.TYPE_TIME: "whole",
}
_KINDS: Mapping[int, tuple[str, ...]] = {
    MetadataKey.TYPE_TEXT: ("text",),
    MetadataKey.TYPE_INTEGER: ("integer",),
    MetadataKey.TYPE_NUMBER: ("number", "integer"),
    MetadataKey.TYPE_BOOLEAN: ("boolean",),
    MetadataKey.TYPE_TIME: ("time",),
}
TYPE_OF_KIND = {
    "text": MetadataKey.TYPE_TEXT,
    "integer": MetadataKey.TYPE_INTEGER,
    "number": MetadataKey.TYPE_NUMBER,
    "boolean": MetadataKey.TYPE_BOOLEAN,
    "time": MetadataKey.TYPE_TIME,
}


def type_name(type_: int) -> str:
    """Return the type as people write it: "NUMBER"."""
    return MetadataKey.Type.Name(MetadataKey.Type.ValueType(type_)).removeprefix("TYPE_")


def columns_of(key: str, type_: int, value: Value) -> tuple[int | None, float | None, str | None]:
    """Return a value as the columns whole, number and text, or raise MetadataType."""
    kind = value.WhichOneof("kind")
    plain = getattr(value, kind) if kind in _KINDS[type_] else None
    if plain is None or not storable(plain):
        shown = str(getattr(value, kind, "nothing") if kind else "nothing")[:80]
        raise MetadataType(key=key, type=type_name(type_), value=f"the {kind or 'empty value'} {shown!r}")
    match COLUMN[type_]:
        case "number":
            return None, float(plain), None
        case "text":
            return None, None, plain
    if kind == "time":
        return microseconds_of(value.time.ToDatetime(tzinfo=UTC)), None, None
    return int(plain), None, None


def storable(plain: Any) -> bool:
    """Tell whether a value is within the bounds of its kind."""
    if isinstance(plain, float):
        return math.isfinite(plain)
    return not isinstance(plain, str) or len(plain) <= _MAX_TEXT


def set_value(target: Value, type_: int, whole: int | None, number: float | None, text: str | None) -> None:
    """Set a value to what the columns store."""
    match type_:
        case MetadataKey.TYPE_TEXT:
            target.text = text or ""
        case MetadataKey.TYPE_NUMBER:
            target.number = number or 0.0
        case MetadataKey.TYPE_INTEGER:
            target.integer = whole or 0
        case MetadataKey.TYPE_BOOLEAN:
            target.boolean = bool(whole)
        case _:
            target.time.CopyFrom(timestamp_of(whole or 0))


@lru_cache(maxsize=4096)
def timestamp_of(stored: int | datetime) -> Timestamp:
    """Return a moment as a driver gives it: microseconds on SQLite. Files that came together share theirs."""
    if isinstance(stored, int):
        seconds, microseconds = divmod(stored, 1_000_000)
        return Timestamp(seconds=seconds, nanos=microseconds * 1000)
    found = Timestamp()
    found.FromDatetime(stored)
    return found


def microseconds_of(moment: datetime) -> int:
    """Return a moment as it is stored."""
    return (moment - _EPOCH) // _MICROSECOND
