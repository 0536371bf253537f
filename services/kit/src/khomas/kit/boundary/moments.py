"""Moments and spans of a request that Python cannot hold or add to now: protobuf takes any number of seconds."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

from google.protobuf.descriptor import Descriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from khomas.kit.errors import FieldInvalid

# The years 1 to 9999, and 1000 years on either side of now.
_SECONDS = range(-62_135_596_800, 253_402_300_800)
_SPAN_SECONDS = range(-31_557_600_000, 31_557_600_001)
_NANOS = range(1_000_000_000)


class _Step(NamedTuple):
    name: str
    repeated: bool
    # None at the moment itself.
    inner: tuple["_Step", ...] | None


def check_spans(message: Message) -> None:
    """Raise FieldInvalid for a Duration of more than 1000 years: whatever it is added to would be no date."""
    if (field := _first(message, _steps(message.DESCRIPTOR, Duration.DESCRIPTOR.full_name), _odd_span)) is not None:
        raise FieldInvalid.of(field, "is no duration of at most 1000 years")


@contextmanager
def moments_of(given: list[Message]) -> Iterator[None]:
    """Raise FieldInvalid for a Timestamp outside of the years 1 to 9999 on which the work with the last message failed.

    Commits have one in every value of time; looking at them before the work would cost a tenth of it.
    """
    try:
        yield
    except (ValueError, OverflowError) as error:
        for message in given[-1:]:
            steps = _steps(message.DESCRIPTOR, Timestamp.DESCRIPTOR.full_name)
            if (field := _first(message, steps, _odd_moment)) is not None:
                raise FieldInvalid.of(field, "is no moment of the years 1 to 9999") from error
        raise


def _odd_moment(one: Timestamp) -> bool:
    return one.seconds not in _SECONDS or one.nanos not in _NANOS


def _odd_span(one: Duration) -> bool:
    return one.seconds not in _SPAN_SECONDS or abs(one.nanos) not in _NANOS


@cache
def _steps(descriptor: Descriptor, wanted: str, above: frozenset[str] = frozenset()) -> tuple[_Step, ...]:
    """Return the ways from a message down to fields of the wanted type; one into itself is not followed."""
    steps = []
    for field in descriptor.fields:
        inner = field.message_type
        if inner is not None and inner.GetOptions().map_entry:
            inner = inner.fields_by_name["value"].message_type
        if inner is None or inner.full_name in above:
            continue
        if inner.full_name == wanted:
            steps.append(_Step(field.name, field.is_repeated, None))
        elif below := _steps(inner, wanted, above | {descriptor.full_name}):
            steps.append(_Step(field.name, field.is_repeated, below))
    return tuple(steps)


def _first(message: Any, steps: Iterable[_Step], odd: Callable[[Any], bool]) -> str | None:
    for name, repeated, inner in steps:
        if repeated:
            found = getattr(message, name)
            elements = found.items() if hasattr(found, "items") else enumerate(found)
        elif message.HasField(name):
            elements = ((None, getattr(message, name)),)
        else:
            continue
        for key, one in elements:
            below = _first(one, inner, odd) if inner is not None else "" if odd(one) else None
            if below is not None:
                return ".".join(filter(None, (name if key is None else f"{name}[{key}]", below)))
    return None
