"""What does not fit into one call goes in parts."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
_CHUNK = 5000


def chunks(items: Sequence[T], length: int = _CHUNK) -> Iterator[Sequence[T]]:
    """Cut a list into what fits into one call."""
    return (items[start : start + length] for start in range(0, len(items), length))


def merged(answers: Sequence[Any]) -> Any:
    """The answers to the parts of one wish as one: numbers are added, lists put together."""
    whole, *rest = answers
    for answer in rest:
        for field, value in answer.ListFields():
            if isinstance(value, int):
                setattr(whole, field.name, getattr(whole, field.name) + value)
            else:
                getattr(whole, field.name).extend(value)
    return whole
