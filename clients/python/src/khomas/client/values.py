"""Values of metadata, plain and as messages."""

from typing import Any


def as_value(plain: Any) -> Any:
    """Return a plain value, or text that reads as a number or a boolean, as a Value."""
    from khomas.api.common.v1.value_pb2 import Value

    if isinstance(plain, bool) or plain in ("true", "false"):
        return Value(boolean=plain in (True, "true"))
    if isinstance(plain, int):
        return Value(integer=plain)
    if isinstance(plain, float):
        return Value(number=plain)
    try:
        return Value(integer=int(str(plain)))
    except ValueError:
        pass
    try:
        return Value(number=float(str(plain)))
    except ValueError:
        return Value(text=str(plain))


def plain_value(value: Any) -> Any:
    """Return a Value as plain Python."""
    kind = value.WhichOneof("kind")
    if kind == "time":
        return value.time.ToJsonString()
    return getattr(value, kind) if kind else None
