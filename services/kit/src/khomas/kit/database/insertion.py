"""Inserts of many rows: `executemany` on SQLite, arrays of values on PostgreSQL, several tables in one statement."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from sqlalchemy import LargeBinary, String, Table, Text, TextClause
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.kit.database.driver import Processor, execute_many, fetch, processor

# Fewer rows are not worth a statement of their own shape, which PostgreSQL would have to plan.
_MANY = 100
_SKIP = " ON CONFLICT DO NOTHING"
_POSTGRESQL: Dialect = postgresql.dialect()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows to insert into a table; defaults are the database's, a Python default is not applied."""

    table: Table
    columns: tuple[str, ...]
    # In the order of `columns`.
    values: Sequence[Sequence[Any]]
    # What all of them have in common: values, or on PostgreSQL an expression as `text`.
    common: Mapping[str, Any] = field(default_factory=dict)


async def insert_rows(connection: AsyncConnection, *parts: Rows, skip_existing: bool = False) -> None:
    """Insert rows into some tables: one statement a table on SQLite, one for all of them on PostgreSQL.

    On SQLite the parts go in their order, and rows that refer to others come after them. With `skip_existing`
    those that break a unique constraint are left out.
    """
    parts = tuple(part for part in parts if part.values)
    if not parts:
        return
    if connection.dialect.name == "postgresql":
        await _insert_arrays(connection, parts, skip_existing)
        return
    for part in parts:
        text = _sqlite_text(part.table, (*part.columns, *part.common), skip_existing)
        await execute_many(connection, text, _sqlite_rows(connection.dialect, part))


async def insert_many(
    connection: AsyncConnection, table: Table, rows: Sequence[Mapping[str, Any]], *, skip_existing: bool = False
) -> None:
    """Insert rows with one statement; with `skip_existing` those that break a unique constraint are left out.

    Every row has the keys of the first one. Defaults are the database's: a Python default is not applied.
    """
    if rows:
        keys = tuple(rows[0])
        values = [[row[key] for key in keys] for row in rows]
        await insert_rows(connection, Rows(table, keys, values), skip_existing=skip_existing)


@lru_cache(maxsize=256)
def _sqlite_text(table: Table, columns: tuple[str, ...], skip_existing: bool) -> str:
    marks = ", ".join("?" * len(columns))
    skip = _SKIP if skip_existing else ""
    return f"INSERT INTO {table.name} ({_names(columns)}) VALUES ({marks}){skip}"  # noqa: S608  names of ours


def _sqlite_rows(dialect: Dialect, part: Rows) -> Iterable[Sequence[Any]]:
    rows: Iterable[Sequence[Any]] = part.values
    own = _processors(part.table, part.columns, dialect)
    if any(own):
        rows = zip(*_processed(own, list(zip(*part.values, strict=True))), strict=True)
    common = _single(part.table, tuple(part.common), part.common, dialect)
    return [(*row, *common) for row in rows] if common else rows


async def _insert_arrays(connection: AsyncConnection, parts: Sequence[Rows], skip_existing: bool) -> None:
    dialect = connection.dialect
    texts: list[str] = []
    values: list[Any] = []
    for part in parts:
        varying, same = _told_apart(part)
        expressions = tuple((key, one.text) for key, one in part.common.items() if isinstance(one, TextClause))
        constants = same | {key: one for key, one in part.common.items() if not isinstance(one, TextClause)}
        columns = (tuple(varying), tuple(constants))
        texts.append(_array_text(part.table, *columns, expressions, len(values), skip_existing))
        values += _processed(_processors(part.table, columns[0], dialect), list(varying.values()))
        values += _single(part.table, columns[1], constants, dialect)
    # What is written by one statement is checked against the others at its end, so their order means nothing.
    above = ", ".join(f"part_{number} AS ({text})" for number, text in enumerate(texts[:-1]))
    await fetch(connection, f"WITH {above} {texts[-1]}" if above else texts[-1], values)


def _told_apart(part: Rows) -> tuple[dict[str, Sequence[Any]], dict[str, Any]]:
    """Return the columns whose values differ, and the values of the others.

    Half of the columns of many rows are the same in all of them, and arrays are what an insert spends its time on.
    """
    columns: dict[str, Sequence[Any]] = dict(zip(part.columns, zip(*part.values, strict=True), strict=True))
    if len(part.values) < _MANY:
        return columns, {}
    same = {
        key: values[0]
        for key, values in list(columns.items())[1:]
        # 0.0 equals -0.0, and is another value.
        if not isinstance(values[0], float) and values.count(values[0]) == len(values)
    }
    return {key: values for key, values in columns.items() if key not in same}, same


@lru_cache(maxsize=1024)
def _array_text(
    table: Table,
    columns: tuple[str, ...],
    constants: tuple[str, ...],
    expressions: tuple[tuple[str, str], ...],
    before: int,
    skip_existing: bool,
) -> str:
    types = [_native(table, key) for key in (*columns, *constants)]
    arrays = ", ".join(f"${before + n + 1}::{types[n]}[]" for n in range(len(columns)))
    single = [f", ${before + n + 1}::{types[n]}" for n in range(len(columns), len(types))]
    names = _names([*columns, *constants, *[key for key, _ in expressions]])
    further = "".join([*single, *[f", {text}" for _, text in expressions]])
    skip = _SKIP if skip_existing else ""
    return f"INSERT INTO {table.name} ({names}) SELECT rows.*{further} FROM unnest({arrays}) AS rows{skip}"  # noqa: S608


def _names(columns: Iterable[str]) -> str:
    """Quote names: some are words of SQL."""
    return ", ".join(f'"{column}"' for column in columns)


def _native(table: Table, key: str) -> str:
    type_ = table.c[key].type
    # A cast to an array of collated text is no SQL.
    return (Text() if isinstance(type_, String) else type_).compile(dialect=_POSTGRESQL)


@lru_cache(maxsize=256)
def _processors(table: Table, columns: tuple[str, ...], dialect: Dialect) -> Sequence[Processor | None]:
    # Both drivers take bytes as they are.
    types = [table.c[key].type for key in columns]
    return [None if isinstance(type_, LargeBinary) else processor(type_, dialect) for type_ in types]


def _processed(processors: Sequence[Processor | None], columns: Sequence[Sequence[Any]]) -> list[Sequence[Any]]:
    """Return columns as the driver wants them."""
    return [
        values if process is None else [process(value) for value in values]
        for process, values in zip(processors, columns, strict=True)
    ]


def _single(table: Table, columns: tuple[str, ...], values: Mapping[str, Any], dialect: Dialect) -> list[Any]:
    processors = zip(columns, _processors(table, columns, dialect), strict=True)
    return [values[key] if process is None else process(values[key]) for key, process in processors]
