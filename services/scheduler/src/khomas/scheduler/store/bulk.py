"""Updates of many rows in one statement."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Table, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.kit.database import rows_table
from khomas.kit.database.driver import execute_many, processor


async def update_many(
    connection: AsyncConnection, table: Table, keys: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Set columns of many rows. Every row has the key columns and the same others."""
    if not rows:
        return
    columns = [name for name in rows[0] if name not in keys]
    if connection.dialect.name == "postgresql":
        types = {name: table.c[name].type for name in rows[0]}
        source = rows_table(connection, types, [tuple(row[name] for name in types) for row in rows])
        change = update(table).values({name: source.c[name] for name in columns})
        for key in keys:
            change = change.where(table.c[key] == source.c[key])
        await connection.execute(change)
        return
    # A prepared statement run row by row is faster here than a join with JSON, and SQLAlchemy's way to it takes
    # longer than SQLite itself.
    order = (*columns, *keys)
    processors = [(name, processor(table.c[name].type, connection.dialect)) for name in order]
    values = [tuple(row[name] if do is None else do(row[name]) for name, do in processors) for row in rows]
    await execute_many(connection, _update_text(table, tuple(columns), tuple(keys)), values)


@lru_cache(maxsize=64)
def _update_text(table: Table, columns: tuple[str, ...], keys: tuple[str, ...]) -> str:
    changes = ", ".join(f'"{name}" = ?' for name in columns)
    chosen = " AND ".join(f'"{name}" = ?' for name in keys)
    return f"UPDATE {table.name} SET {changes} WHERE {chosen}"  # noqa: S608  names of ours


async def add_many(
    connection: AsyncConnection, table: Table, keys: Sequence[str], number: str, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Add to a number in many rows, making those that are missing."""
    if not rows:
        return
    if connection.dialect.name == "postgresql":
        types = {name: table.c[name].type for name in rows[0]}
        source = rows_table(connection, types, [tuple(row[name] for name in types) for row in rows])
        added = postgresql.insert(table).from_select(list(types), select(*source.c), include_defaults=False)
        grown = table.c[number] + added.excluded[number]
        await connection.execute(added.on_conflict_do_update(index_elements=list(keys), set_={number: grown}))
        return
    insert = sqlite.insert(table)
    grown = table.c[number] + insert.excluded[number]
    await connection.execute(
        insert.on_conflict_do_update(index_elements=list(keys), set_={number: grown}), [dict(row) for row in rows]
    )
