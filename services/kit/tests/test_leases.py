"""Leases: one holder at a time, batches, and no commit by who lost it."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import chain

import pytest
from sqlalchemy import Column, MetaData, Table, Text, select, update

from khomas.kit.database import Database, RowId, count_statements, insert_many
from khomas.kit.leases import FREE, claim, held, held_table, lease_columns, renew

metadata = MetaData()
work = Table(
    "work",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("state", Text, nullable=False),
    *lease_columns(),
)
NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(minutes=5)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url, metadata=metadata, migrations="nowhere:migrations")
    async with database.write() as connection:
        await connection.run_sync(metadata.create_all)
        await insert_many(connection, work, [{"state": "waiting"} for _ in range(100)])
    yield database
    await database.close()


async def take(database: Database, owner: str, count: int, now: datetime = NOON) -> dict[int, int]:
    """Claim and return epochs by id."""
    wanted = select(work.c.id).where(work.c.state == "waiting").order_by(work.c.id).limit(count)
    async with database.write() as connection:
        rows = await claim(
            connection,
            work,
            wanted,
            owner=owner,
            now=now,
            until=now + timedelta(minutes=1),
            returning=[work.c.id, work.c.lease_epoch],
        )
    return {row.id: row.lease_epoch for row in rows}


async def finish(database: Database, leases: dict[int, int]) -> int:
    async with database.write() as connection:
        mine = held_table(connection, work, leases)
        done = await connection.execute(
            update(work).values(state="done", **FREE).where(held(work, mine)).returning(work.c.id)
        )
        return len(done.all())


async def test_batch_is_claimed_by_one_statement_in_the_wanted_order(database: Database) -> None:
    with count_statements(database) as statements:
        leases = await take(database, "a", 20)
    assert len(statements) == 1
    assert leases == dict.fromkeys(range(1, 21), 1)


async def test_concurrent_workers_never_hold_the_same_row(database: Database) -> None:
    async def drain(owner: str) -> list[int]:
        mine: list[int] = []
        while leases := await take(database, owner, 7):
            mine += leases
        return mine

    taken = await asyncio.gather(*[drain(owner) for owner in "abcd"])
    assert sorted(chain.from_iterable(taken)) == list(range(1, 101))


async def test_expired_lease_is_claimed_by_another_with_a_higher_epoch(database: Database) -> None:
    await take(database, "a", 5)
    assert await take(database, "b", 5, LATER) == dict.fromkeys(range(1, 6), 2)


async def test_worker_that_lost_its_lease_cannot_commit(database: Database) -> None:
    lost = await take(database, "a", 5)
    taken = await take(database, "b", 3, LATER)
    assert await finish(database, lost) == 2
    assert await finish(database, taken) == 3


async def test_renewal_keeps_others_out_and_tells_what_was_lost(database: Database) -> None:
    leases = await take(database, "a", 5)
    await take(database, "b", 2, LATER)
    async with database.write() as connection:
        kept = await renew(connection, work, leases, until=LATER + timedelta(hours=1))
    assert sorted(kept) == [3, 4, 5]
    assert sorted(await take(database, "c", 3, LATER)) == [6, 7, 8]
