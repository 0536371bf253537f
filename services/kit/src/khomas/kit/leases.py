"""Rows that one worker at a time may work on: claimed in batches, until a time, with an epoch.

A worker that lost its lease must not commit what it did: its statements have the condition `held(...)`, so they
touch nothing once somebody else has claimed the row and raised the epoch.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Column, ColumnElement, FromClause, Select, Table, Text, and_, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.kit.database import AnyRow, UtcTime, in_values, rows_table

# What an update sets that lets a row go.
FREE: Mapping[str, None] = {"lease_owner": None, "lease_expire_time": None}


def lease_columns() -> list[Column[Any]]:
    """Declare the columns of a table whose rows are leased."""
    return [
        Column("lease_owner", Text),
        Column("lease_expire_time", UtcTime),
        Column("lease_epoch", BigInteger, nullable=False, server_default="0"),
    ]


async def claim(
    connection: AsyncConnection,
    table: Table,
    wanted: Select[*tuple[Any, ...]],
    *,
    owner: str,
    now: datetime,
    until: datetime,
    returning: Sequence[ColumnElement[Any]] = (),
) -> Sequence[AnyRow]:
    """Lease the free rows among the first `wanted`, with one statement, and return `returning` of each.

    `wanted` selects the primary key, in the order of preference and with a limit. What another worker
    claims at the same moment is skipped, not waited for.
    """
    key = _key(table)
    free = or_(table.c.lease_expire_time.is_(None), table.c.lease_expire_time < now)
    chosen = wanted.where(free).with_for_update(skip_locked=True, of=table).cte("chosen")
    lease = {"lease_owner": owner, "lease_expire_time": until, "lease_epoch": table.c.lease_epoch + 1}
    statement = update(table).values(lease).where(key.in_(select(chosen.c[key.key])))
    return (await connection.execute(statement.returning(*(returning or table.c)))).all()


def held_table(connection: AsyncConnection, table: Table, epochs: Mapping[Any, int]) -> FromClause:
    """Use leases, by key, as a table to update from under the condition `held`."""
    types = {"key": _key(table).type, "epoch": table.c.lease_epoch.type}
    return rows_table(connection, types, list(epochs.items()))


def held(table: Table, leases: FromClause) -> ColumnElement[bool]:
    """Say that a row is one of these leases, and nobody else's by now."""
    return and_(_key(table) == leases.c.key, table.c.lease_epoch == leases.c.epoch)


async def lock(connection: AsyncConnection, table: Table, keys: Iterable[Any]) -> None:
    """Lock rows in the order of their keys: two transactions that lock some in other orders wait for each other.

    PostgreSQL ends one of them then. SQLite has one writer at a time.
    """
    if connection.dialect.name == "postgresql":
        key = _key(table)
        rows = select(key).where(in_values(key, list(keys))).order_by(key)
        await connection.execute(rows.with_for_update(key_share=True))


async def renew(connection: AsyncConnection, table: Table, epochs: Mapping[Any, int], *, until: datetime) -> list[Any]:
    """Prolong leases and return the keys of those that are still held."""
    await lock(connection, table, epochs)
    leases = held_table(connection, table, epochs)
    statement = update(table).values(lease_expire_time=until).where(held(table, leases))
    return list((await connection.execute(statement.returning(_key(table)))).scalars())


def _key(table: Table) -> Column[Any]:
    [key] = table.primary_key.columns
    return key
