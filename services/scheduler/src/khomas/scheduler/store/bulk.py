"""Updates of many rows in one statement."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Table, bindparam, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.kit.database import rows_table


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
    # A prepared statement run row by row is faster here than a join with JSON.
    change = update(table).values({name: bindparam(f"new_{name}") for name in columns})
    for key in keys:
        change = change.where(table.c[key] == bindparam(f"key_{key}"))
    await connection.execute(
        change, [{("key_" if name in keys else "new_") + name: value for name, value in row.items()} for row in rows]
    )


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
