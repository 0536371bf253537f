"""Fields that a filter may name, and what they are in SQL."""

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from sqlalchemy import BigInteger, ColumnElement, String, literal

from khomas.kit.filtering.ast import Operator, Value
from khomas.kit.filtering.literals import read_boolean, read_duration, read_integer, read_number, read_time

Condition = ColumnElement[bool]
# Of names that grow with an installation, such as those of metadata keys and backends.
_MOST_NAMES = 40
_ORDERS: dict[Operator, Callable[[ColumnElement[Any], Any], Condition]] = {
    Operator.EQUALS: lambda column, value: column == value,
    Operator.HAS: lambda column, value: column == value,
    Operator.LESS: lambda column, value: column < value,
    Operator.LESS_EQUALS: lambda column, value: column <= value,
    Operator.GREATER: lambda column, value: column > value,
    Operator.GREATER_EQUALS: lambda column, value: column >= value,
}


class Unfit(ValueError):
    """A value or operator that a field does not take; `nearest` are better ones."""

    def __init__(self, problem: str, nearest: Sequence[str] = ()) -> None:
        super().__init__(problem)
        self.nearest = tuple(nearest)


class EnumType(Protocol):
    """A protobuf enum as the generated code has it."""

    def Name(self, number: Any) -> str:  # noqa: N802  protobuf's name
        """Return the name of a value."""
        ...

    def items(self) -> Iterable[tuple[str, int]]:
        """Return names and numbers."""
        ...


class Field(Protocol):
    """Something that a filter compares with a value."""

    def condition(self, operator: Operator, value: Value) -> Condition:
        """Return the condition in SQL, for every operator but `!=`. Raises `ValueError`."""
        ...


@dataclass(frozen=True, slots=True)
class _Text:
    column: ColumnElement[Any]

    def condition(self, operator: Operator, value: Value) -> Condition:
        if operator is Operator.HAS:
            return self.column.is_not(None) if _anything(value) else self.column.contains(value.text, autoescape=True)
        if operator is Operator.EQUALS and (value.open_start or value.open_end):
            escaped = value.text.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_")
            return self.column.like("%" * value.open_start + escaped + "%" * value.open_end, escape="\\")
        return _ORDERS[operator](self.column, _plain(value))


@dataclass(frozen=True, slots=True)
class _Scalar:
    column: ColumnElement[Any]
    read: Callable[[str], Any]
    ordered: bool = True

    def condition(self, operator: Operator, value: Value) -> Condition:
        if operator is Operator.HAS and _anything(value):
            return self.column.is_not(None)
        if not self.ordered and operator not in (Operator.EQUALS, Operator.HAS):
            raise Unfit("only = and != are possible here")
        return _ORDERS[operator](self.column, self.read(_plain(value)))


@dataclass(frozen=True, slots=True)
class _Within:
    field: Field
    wrap: Callable[[Condition], Condition]

    def condition(self, operator: Operator, value: Value) -> Condition:
        return self.wrap(self.field.condition(operator, value))


def text(column: ColumnElement[Any]) -> Field:
    """Text: `=` with `*` at the ends, `:` for "contains"."""
    return _Text(column)


def integer(column: ColumnElement[Any]) -> Field:
    """Whole numbers."""
    # A number beyond the column's own type is a fair question too.
    return _Scalar(column, lambda written: literal(read_integer(written), BigInteger))


def number(column: ColumnElement[Any]) -> Field:
    """Finite numbers."""
    return _Scalar(column, read_number)


def boolean(column: ColumnElement[Any]) -> Field:
    """True or false."""
    return _Scalar(column, read_boolean, ordered=False)


def time(column: ColumnElement[Any]) -> Field:
    """Moments: `"2024-05-01T12:00:00Z"`, or a day."""
    return _Scalar(column, read_time)


def duration(column: ColumnElement[Any], unit: timedelta = timedelta(seconds=1)) -> Field:
    """Time spans, `30m`, kept in the column as a number of units."""
    return _Scalar(column, lambda written: read_duration(written) / unit)


def enum(column: ColumnElement[Any], values: EnumType) -> Field:
    """Values of a protobuf enum, written with or without its prefix; the column has numbers or full names."""
    prefix = values.Name(0).removesuffix("UNSPECIFIED")
    by_name = {name.removeprefix(prefix): (number, name) for name, number in values.items() if number}
    stored_as_text = isinstance(column.type, String)

    def read(written: str) -> int | str:
        name = written.upper().removeprefix(prefix)
        if name not in by_name:
            raise Unfit(f"there is no value {written}", _whole(name, by_name))
        return by_name[name][stored_as_text]

    return _Scalar(column, read, ordered=False)


def choice(column: ColumnElement[Any], values: Iterable[str]) -> Field:
    """Some words, such as those of a StrEnum, in any case."""
    by_name = {value.upper(): value for value in values}

    def read(written: str) -> str:
        if written.upper() not in by_name:
            raise Unfit(f"there is no value {written}", _whole(written.upper(), by_name))
        return by_name[written.upper()]

    return _Scalar(column, read, ordered=False)


def within(field: Field, wrap: Callable[[Condition], Condition]) -> Field:
    """Put the condition of a field into another one, such as EXISTS over a table of values."""
    return _Within(field, wrap)


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """Return the names that are most like this one; if none is like it, all that a message can hold."""
    known = sorted(names)
    return _like(name, known) or known[:_MOST_NAMES]


def _whole(name: str, names: Iterable[str]) -> list[str]:
    """Return all names, those before that are most like this one: who writes DONE cannot guess SUCCEEDED."""
    known = sorted(names)
    return list(dict.fromkeys([*_like(name, known), *known]))


def _like(name: str, known: Sequence[str]) -> list[str]:
    return difflib.get_close_matches(name, known, n=3)


def _plain(value: Value) -> str:
    if value.open_start or value.open_end:
        raise Unfit("* is possible only at the ends of a text after =")
    return value.text


def _anything(value: Value) -> bool:
    return value.text == "" and (value.open_start or value.open_end)
