"""Transactions, bulk statements and types on SQLite and on PostgreSQL."""

import asyncio
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import (
    Boolean,
    Column,
    Float,
    ForeignKey,
    LargeBinary,
    MetaData,
    Table,
    Text,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.exc import DBAPIError, IntegrityError

from khomas.kit.database import (
    Database,
    KeyText,
    RowId,
    UtcTime,
    count_statements,
    in_values,
    insert_many,
    insert_new,
    rows_table,
)
from khomas.kit.errors import DiskFull, UpstreamUnavailable

metadata = MetaData()
thing = Table(
    "thing",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("name", KeyText, nullable=False, unique=True),
    Column("size", RowId),
    Column("weight", Float),
    Column("good", Boolean),
    Column("made", UtcTime),
    Column("content", LargeBinary),
)
part = Table("part", metadata, Column("thing", ForeignKey("thing.id"), nullable=False), Column("text", Text))
NOON = datetime(2024, 5, 1, 12, 0, 0, 123456, tzinfo=UTC)

# Acknowledges every row after its commit, until it is killed.
WRITER = """
import asyncio, sys
from sqlalchemy import MetaData, text
from khomas.kit.database import Database

async def main():
    database = Database(sys.argv[1], metadata=MetaData(), migrations="nowhere:migrations")
    async with database.write() as connection:
        await connection.execute(text("CREATE TABLE written (number INTEGER)"))
    for number in range(1_000_000):
        async with database.write() as connection:
            await connection.execute(text("INSERT INTO written VALUES (:number)"), {"number": number})
        print(number, flush=True)

asyncio.run(main())
"""


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url, metadata=metadata, migrations="nowhere:migrations")
    async with database.write() as connection:
        await connection.run_sync(metadata.create_all)
    yield database
    await database.close()


async def names(database: Database) -> list[str]:
    async with database.read() as connection:
        return list((await connection.execute(select(thing.c.name).order_by(thing.c.name))).scalars())


async def test_block_that_raises_changes_nothing(database: Database) -> None:
    async def fail() -> None:
        async with database.write() as connection:
            await connection.execute(insert(thing).values(name="a"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    assert await names(database) == []


async def test_cancelled_writer_changes_nothing_and_lets_the_next_one_in(database: Database) -> None:
    written = asyncio.Event()

    async def hang() -> None:
        async with database.write() as connection:
            await connection.execute(insert(thing).values(name="a"))
            written.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(hang())
    await written.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with database.write() as connection:
        await connection.execute(insert(thing).values(name="b"))
    assert await names(database) == ["b"]


async def test_writers_that_are_cancelled_in_a_statement_keep_nobody_out(database: Database) -> None:
    async def write(number: int) -> None:
        async with database.write() as connection:
            rows = [{"id": 1000 * number + index, "name": f"{number}/{index}"} for index in range(50)]
            await connection.execute(insert(thing), rows)

    other = Database(database.url.render_as_string(hide_password=False), metadata=metadata, migrations="")
    for number in range(40):
        writers = [asyncio.create_task(write(4 * number + part)) for part in range(4)]
        await asyncio.sleep(number * 0.0001)
        for writer in writers:
            writer.cancel()
        await asyncio.gather(*writers, return_exceptions=True)
        async with asyncio.timeout(5), other.write() as connection:
            await connection.execute(update(thing).values(size=number))
    await other.close()


async def test_parallel_writers_lose_no_update(database: Database) -> None:
    async with database.write() as connection:
        await connection.execute(insert(thing).values(name="a", size=0))

    async def add() -> None:
        async with database.write() as connection:
            await connection.execute(update(thing).values(size=thing.c.size + 1))

    await asyncio.gather(*[add() for _ in range(40)])
    async with database.read() as connection:
        assert (await connection.execute(select(thing.c.size))).scalar_one() == 40


async def test_snapshot_stays_at_its_moment_while_others_write(database: Database) -> None:
    async with database.snapshot() as connection:
        before = (await connection.execute(select(func.count()).select_from(thing))).scalar_one()
        async with database.write() as writer:
            await writer.execute(insert(thing).values(name="a"))
        after = (await connection.execute(select(func.count()).select_from(thing))).scalar_one()
    assert (before, after) == (0, 0)
    assert await names(database) == ["a"]


async def test_next_snapshot_sees_what_was_committed_meanwhile(database: Database) -> None:
    for expected in range(3):
        async with database.snapshot() as connection:
            count = (await connection.execute(select(func.count()).select_from(thing))).scalar_one()
        assert count == expected
        async with database.write() as connection:
            await connection.execute(insert(thing).values(name=str(expected)))


async def test_foreign_keys_are_enforced(database: Database) -> None:
    with pytest.raises(IntegrityError):
        async with database.write() as connection:
            await connection.execute(insert(part).values(thing=17, text="x"))


async def test_snapshot_cannot_write(database: Database) -> None:
    with pytest.raises(DBAPIError):
        async with database.snapshot() as connection:
            await connection.execute(insert(thing).values(name="a"))


async def test_unreachable_server_is_unavailable() -> None:
    database = Database(
        "postgresql+asyncpg://nobody@127.0.0.1:1/none", metadata=metadata, migrations="nowhere:migrations"
    )
    with pytest.raises(UpstreamUnavailable):
        async with database.read() as connection:
            await connection.execute(select(1))


async def test_full_disk_changes_nothing_and_says_so(tmp_path: Path) -> None:
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'full.db'}", metadata=metadata, migrations="x:y")
    async with database.write() as connection:
        await connection.run_sync(metadata.create_all)
        # SQLite answers as it does when the file system has no page left.
        await connection.exec_driver_sql("PRAGMA max_page_count = 10")

    async def fill() -> None:
        async with database.write() as connection:
            await insert_many(connection, thing, [{"name": str(n), "content": bytes(1000)} for n in range(100)])

    with pytest.raises(DiskFull):
        await fill()
    assert await names(database) == []
    await database.close()


async def test_callback_runs_after_commit_only(database: Database) -> None:
    seen: list[str] = []
    async with database.write() as connection:
        database.after_commit(connection, lambda: seen.append("committed"))
        assert seen == []
    assert seen == ["committed"]


async def test_callback_does_not_run_after_rollback(database: Database) -> None:
    seen: list[str] = []

    async def fail() -> None:
        async with database.write() as connection:
            database.after_commit(connection, lambda: seen.append("committed"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    assert seen == []


async def test_thousand_rows_of_every_type_are_one_statement_and_come_back_equal(database: Database) -> None:
    rows = [
        {
            "name": f"/n/{number:04}'\"é",
            "size": 2**62 + number,
            "weight": number / 7,
            "good": number % 2 == 0,
            "made": NOON + timedelta(microseconds=number),
            "content": bytes([number % 256]),
        }
        for number in range(1000)
    ]
    with count_statements(database) as statements:
        async with database.write() as connection:
            await insert_many(connection, thing, rows)
    assert len(statements) == 1
    async with database.read() as connection:
        query = select(*[thing.c[key] for key in rows[0]]).order_by(thing.c.name)
        assert [dict(row) for row in (await connection.execute(query)).mappings()] == rows


async def test_missing_values_stay_missing(database: Database) -> None:
    row = {"name": "a", "size": None, "weight": None, "good": None, "made": None}
    async with database.write() as connection:
        await insert_new(connection, thing, [row], thing.c.id)
    async with database.read() as connection:
        assert dict((await connection.execute(select(*[thing.c[key] for key in row]))).mappings().one()) == row


async def test_insert_new_returns_what_was_not_there(database: Database) -> None:
    async with database.write() as connection:
        await insert_many(connection, thing, [{"name": "a", "made": NOON}, {"name": "b", "made": NOON}])
        rows = [{"name": name, "made": NOON} for name in "abcd"]
        with count_statements(database) as statements:
            new = await insert_new(connection, thing, rows, thing.c.name, thing.c.made)
    assert len(statements) == 1
    assert sorted(new) == [("c", NOON), ("d", NOON)]


async def test_existing_rows_are_skipped_on_demand(database: Database) -> None:
    async with database.write() as connection:
        await insert_many(connection, thing, [{"name": "a"}])
        await insert_many(connection, thing, [{"name": "a"}, {"name": "b"}], skip_existing=True)
    assert await names(database) == ["a", "b"]


async def test_many_values_are_found_by_one_statement(database: Database) -> None:
    async with database.write() as connection:
        await insert_many(connection, thing, [{"name": f"/n/{number}", "size": number} for number in range(3000)])
    wanted = [f"/n/{number}" for number in range(0, 100_000, 2)]
    with count_statements(database) as statements:
        async with database.read() as connection:
            by_name = await connection.execute(select(thing.c.id).where(in_values(thing.c.name, wanted)))
            by_size = await connection.execute(select(thing.c.id).where(in_values(thing.c.size, range(7))))
    assert len(statements) == 2
    assert len(by_name.all()) == 1500
    assert len(by_size.all()) == 7


async def test_condition_on_many_values_stands_alone_so_that_an_index_helps(database: Database) -> None:
    query = select(thing.c.id).where(in_values(thing.c.name, ["a"]))
    with count_statements(database) as statements:
        async with database.read() as connection:
            await connection.execute(query)
    assert statements[0].endswith(("json_each(?))", "= ANY ($1::TEXT[])"))


async def test_no_values_match_nothing(database: Database) -> None:
    async with database.write() as connection:
        await insert_many(connection, thing, [{"name": "a"}])
        found = await connection.execute(select(thing.c.id).where(in_values(thing.c.name, [])))
    assert found.all() == []


async def test_rows_get_different_values_by_one_statement(database: Database) -> None:
    async with database.write() as connection:
        await insert_many(connection, thing, [{"name": name} for name in "abc"])
        columns = {"name": thing.c.name.type, "size": thing.c.size.type, "made": thing.c.made.type}
        new = rows_table(connection, columns, [("a", 1, NOON), ("c", None, NOON)])
        with count_statements(database) as statements:
            await connection.execute(
                update(thing).values(size=new.c.size, made=new.c.made).where(thing.c.name == new.c.name)
            )
        query = select(thing.c.name, thing.c.size, thing.c.made).order_by(thing.c.name)
        rows = (await connection.execute(query)).all()
    assert len(statements) == 1
    assert rows == [("a", 1, NOON), ("b", None, None), ("c", None, NOON)]


async def test_moment_without_zone_is_refused(database: Database) -> None:
    with pytest.raises(Exception, match="no time zone"):
        async with database.write() as connection:
            await connection.execute(insert(thing).values(name="a", made=datetime(2024, 1, 1)))  # noqa: DTZ001


async def test_moment_comes_back_in_utc(database: Database) -> None:
    berlin = timezone(timedelta(hours=2))
    async with database.write() as connection:
        await connection.execute(insert(thing).values(name="a", made=NOON.astimezone(berlin)))
        made = (await connection.execute(select(thing.c.made))).scalar_one()
    assert (made, made.tzinfo) == (NOON, UTC)


async def test_prefix_search_tells_upper_from_lower_case(database: Database) -> None:
    async with database.write() as connection:
        await insert_many(connection, thing, [{"name": "/A/x"}, {"name": "/a/x"}])
        found = await connection.execute(select(thing.c.name).where(thing.c.name.like("/a/%")))
    assert found.scalars().all() == ["/a/x"]


async def test_acknowledged_writes_survive_the_death_of_the_process(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'killed.db'}"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", WRITER, url, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    acknowledged = [int(await process.stdout.readline()) for _ in range(50)]
    process.kill()
    acknowledged += [int(line) for line in (await process.stdout.read()).splitlines()]
    await process.wait()
    database = Database(url, metadata=metadata, migrations="nowhere:migrations")
    async with database.read() as connection:
        rows = (await connection.execute(text("SELECT number FROM written"))).scalars().all()
    await database.close()
    assert set(acknowledged) <= set(rows)
