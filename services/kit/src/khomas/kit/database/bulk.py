"""Many values as parameters of one statement."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    Boolean,
    ColumnElement,
    FromClause,
    LargeBinary,
    String,
    Table,
    Text,
    TypeDecorator,
    bindparam,
    column,
    func,
    select,
    true,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeEngine

from khomas.kit.database.types import AnyRow


class _Many(TypeDecorator[Any]):
    """A list of values of one type as one parameter: an array on PostgreSQL, JSON text on SQLite."""

    impl = Text
    cache_ok = True

    def __init__(self, item: TypeEngine[Any]) -> None:
        super().__init__()
        self.item = item

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name != "postgresql":
            return dialect.type_descriptor(Text())
        # A cast to an array of collated text is no SQL.
        item = Text() if isinstance(self.item, String) else self.item
        # One dimension: a list as a value, such as JSON, is no further dimension.
        return dialect.type_descriptor(postgresql.ARRAY(item, dimensions=1))

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        if dialect.name == "postgresql":
            return value
        return json.dumps(_storable(self.item, value, dialect))


def _storable(item: TypeEngine[Any], values: Sequence[Any], dialect: Dialect) -> list[Any]:
    if isinstance(item, LargeBinary):
        raise TypeError("bytes cannot be passed to SQLite this way; use insert_many")
    processor = item.dialect_impl(dialect).bind_processor(dialect)
    return [processor(value) for value in values] if processor else list(values)


class _InValues(FunctionElement[bool]):
    name = "in_values"
    type = Boolean()
    inherit_cache = True

    def self_group(self, against: object = None) -> "_InValues":
        # SQLAlchemy would write "… = 1" for SQLite, which then reads the whole table (20 times slower).
        return self


@compiles(_InValues, "postgresql")
def _in_array(element: _InValues, compiler: SQLCompiler, **options: Any) -> str:
    column, values = (compiler.process(clause, **options) for clause in element.clauses)
    return f"{column} = ANY ({values})"


@compiles(_InValues)
def _in_json(element: _InValues, compiler: SQLCompiler, **options: Any) -> str:
    column, values = (compiler.process(clause, **options) for clause in element.clauses)
    return f"{column} IN (SELECT value FROM json_each({values}))"  # noqa: S608  compiled clauses, no values


def in_values(column: ColumnElement[Any], values: Collection[Any]) -> ColumnElement[bool]:
    """Match a column against any number of values with one parameter."""
    return _InValues(column, bindparam(None, list(values), type_=_Many(column.type), unique=True))


def values_param(column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
    """Match a column against any number of values that a prepared statement gets by a name."""
    return _InValues(column, bindparam(name, type_=_Many(column.type)))


def rows_table(
    connection: AsyncConnection, columns: Mapping[str, TypeEngine[Any]], rows: Iterable[Sequence[Any]]
) -> FromClause:
    """Use Python rows as a table in a statement: to join with, to update from, to insert from.

    The values of a row stand in the order of `columns`. Bytes work on PostgreSQL only.
    """
    lists = [list(values) for values in zip(*rows, strict=True)] or [[] for _ in columns]
    if connection.dialect.name == "postgresql":
        return _unnest(columns, lists)
    return _json_rows(connection.dialect, columns, lists)


def _unnest(columns: Mapping[str, TypeEngine[Any]], lists: Sequence[list[Any]]) -> FromClause:
    arrays = [
        bindparam(None, values, type_=_Many(item), unique=True)
        for item, values in zip(columns.values(), lists, strict=True)
    ]
    named = [column(key, item) for key, item in columns.items()]
    return func.unnest(*arrays).table_valued(*named).render_derived()


def _json_rows(dialect: Dialect, columns: Mapping[str, TypeEngine[Any]], lists: Sequence[list[Any]]) -> FromClause:
    storable = [_storable(item, values, dialect) for item, values in zip(columns.values(), lists, strict=True)]
    each = func.json_each(json.dumps(list(zip(*storable, strict=True)))).table_valued("value")
    values = [
        func.json_extract(each.c.value, f"$[{position}]", type_=item).label(key)
        for position, (key, item) in enumerate(columns.items())
    ]
    return select(*values).subquery()


async def insert_new(
    connection: AsyncConnection,
    table: Table,
    rows: Sequence[Mapping[str, Any]],
    *returning: ColumnElement[Any],
) -> Sequence[AnyRow]:
    """Insert the rows that break no unique constraint, with one statement, and return columns of those.

    The order of the answer is not that of `rows`. Bytes work on PostgreSQL only.
    """
    if not rows:
        return []
    keys = list(rows[0])
    types = {key: table.c[key].type for key in keys}
    source = rows_table(connection, types, [[row[key] for key in keys] for row in rows])
    # SQLite takes "ON CONFLICT" after a bare FROM for the condition of a join, hence the WHERE.
    query = select(*[source.c[key] for key in keys]).where(true())
    insert = postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)
    insert = insert.from_select(keys, query, include_defaults=False).on_conflict_do_nothing()
    return (await connection.execute(insert.returning(*returning))).all()
