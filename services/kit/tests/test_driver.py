"""Statements that go to the driver itself, on SQLite and on PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from sqlalchemy import (
    JSON,
    Column,
    Float,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    bindparam,
    literal,
    select,
)
from sqlalchemy.exc import IntegrityError

from khomas.kit.database import (
    Database,
    KeyText,
    Prepared,
    RowId,
    Rows,
    UtcTime,
    count_statements,
    fetch,
    insert_rows,
    values_param,
)

metadata = MetaData()
thing = Table(
    "thing",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("name", KeyText, nullable=False, unique=True),
    Column("made", UtcTime),
    Column("content", LargeBinary),
    Column("facts", JSON),
    Column("size", Float),
)
part = Table(
    "part",
    metadata,
    Column("thing_id", RowId, ForeignKey("thing.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
)
NOON = datetime(2024, 5, 1, 12, 0, 0, 123456, tzinfo=UTC)
NAMED = Prepared(select(thing.c.id, thing.c.name).where(values_param(thing.c.name, "names")).order_by(thing.c.id))
ALL = Prepared(select(thing).where(values_param(thing.c.name, "names")))
MADE = Prepared(select(thing.c.name, literal("x")).where(thing.c.made == bindparam("made", type_=UtcTime)))


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url, metadata=metadata, migrations="nowhere:migrations")
    async with database.write() as connection:
        await connection.run_sync(metadata.create_all)
    yield database
    await database.close()


def things(*names: str) -> Rows:
    """Ids are the positions, counted from 1."""
    values = [(number, name, name.encode()) for number, name in enumerate(names, 1)]
    return Rows(thing, ("id", "name", "content"), values, {"made": NOON})


async def test_rows_of_two_tables_are_one_statement_on_postgresql_and_one_a_table_on_sqlite(
    database: Database,
) -> None:
    parts = Rows(part, ("thing_id", "number"), [(1, 1), (2, 1), (2, 2)])
    async with database.write() as connection:
        with count_statements(database) as statements:
            await insert_rows(connection, things("a", "b"), parts)
    assert len(statements) == {"postgresql": 1, "sqlite": 2}[database.dialect]
    async with database.read() as connection:
        assert (await connection.execute(select(thing.c.name, thing.c.made, thing.c.content))).all() == [
            ("a", NOON, b"a"),
            ("b", NOON, b"b"),
        ]
        assert len((await connection.execute(select(part))).all()) == 3


async def test_values_of_a_prepared_statement_are_those_of_sqlalchemy(database: Database) -> None:
    rows = [(1, "a", NOON, b"a", {"b": [1, None]}, 0.5), (2, "b", None, None, None, None)]
    async with database.write() as connection:
        await insert_rows(connection, Rows(thing, tuple(thing.c.keys()), rows))
    async with database.read() as connection:
        found = await ALL.values(connection, names=["a", "b"])
        assert await ALL.values(connection, names=["c"]) == []
        assert found == (await connection.execute(select(thing))).all() == rows
        assert found[0][2].tzinfo is UTC


@pytest.mark.parametrize("facts", [{}, [], {"a": [1, {}]}, "", 0, False, "{}", "[]"])
async def test_json_comes_back_as_it_went(database: Database, facts: object) -> None:
    async with database.write() as connection:
        await insert_rows(connection, Rows(thing, ("id", "name", "facts"), [(1, "a", facts)]))
        [by_driver] = await ALL.values(connection, names=["a"])
        by_sqlalchemy = (await connection.execute(select(thing.c.facts))).scalar_one()
    assert (by_driver[4], by_sqlalchemy) == (facts, facts)
    assert type(by_driver[4]) is type(by_sqlalchemy) is type(facts)


async def test_what_many_rows_have_in_common_is_in_each_of_them(database: Database) -> None:
    rows = [(n, f"n{n}", NOON, b"same", {"a": 1}, (0.0, -0.0)[n % 2]) for n in range(1, 201)]
    async with database.write() as connection:
        await insert_rows(connection, Rows(thing, tuple(thing.c.keys()), rows))
        found = (await connection.execute(select(thing).order_by(thing.c.id))).all()
    assert found == rows
    # SQLite keeps no sign of zero.
    assert [str(row.size) for row in found[:2]] == ["-0.0" if database.dialect == "postgresql" else "0.0", "0.0"]


async def test_rows_that_exist_are_left_out_when_asked(database: Database) -> None:
    async with database.write() as connection:
        await insert_rows(connection, things("a"))
        await insert_rows(connection, things("a", "b"), skip_existing=True)
        assert [row[1] for row in await NAMED.rows(connection, names=["a", "b"])] == ["a", "b"]


async def test_no_rows_are_no_statement(database: Database) -> None:
    async with database.write() as connection:
        with count_statements(database) as statements:
            await insert_rows(connection, things())
    assert statements == []


async def test_a_broken_constraint_is_the_error_of_sqlalchemy(database: Database) -> None:
    with pytest.raises(IntegrityError):
        async with database.write() as connection:
            await insert_rows(connection, things("a", "a"))
    async with database.read() as connection:
        assert await NAMED.rows(connection, names=["a"]) == []


async def test_a_prepared_statement_takes_its_values_by_name(database: Database) -> None:
    async with database.write() as connection:
        await insert_rows(connection, things("a", "b", "c"))
    async with database.read() as connection:
        assert [tuple(row) for row in await NAMED.rows(connection, names=["a", "c", "d"])] == [(1, "a"), (3, "c")]
        assert [tuple(row) for row in await MADE.rows(connection, made=NOON)] == [(name, "x") for name in "abc"]


async def test_driver_and_sqlalchemy_share_the_transaction(database: Database) -> None:
    async def fail() -> None:
        async with database.write() as connection:
            await insert_rows(connection, things("a"))
            assert (await connection.execute(select(thing.c.name))).scalars().all() == ["a"]
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    async with database.read() as connection:
        assert (await connection.execute(select(thing.c.name))).scalars().all() == []


async def test_a_call_that_is_cancelled_in_a_statement_leaves_no_transaction_open(database: Database) -> None:
    async def insert_forever() -> None:
        async with database.write() as connection:
            for number in range(10_000):
                await insert_rows(connection, Rows(thing, ("name",), [(f"{number}",)]))

    task = asyncio.create_task(insert_forever())
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with database.write() as connection:
        assert await NAMED.rows(connection, names=["0", "1"]) == []


async def test_a_lost_connection_is_replaced(postgresql_url: str) -> None:
    database = Database(postgresql_url, metadata=metadata, migrations="nowhere:migrations", connections=2)
    async with database.read() as connection:
        lost = (await fetch(connection, "SELECT pg_backend_pid()"))[0][0]
    async with database.read() as connection, database.read() as other:
        pids = [(await fetch(one, "SELECT pg_backend_pid()"))[0][0] for one in (connection, other)]
        killer = other if pids[0] == lost else connection
        await fetch(killer, "SELECT pg_terminate_backend($1, 5000)", (lost,))
        await asyncio.sleep(0.05)
    async with database.read() as connection, database.read() as other:
        assert [(await fetch(one, "SELECT 1"))[0][0] for one in (connection, other)] == [1, 1]
    await database.close()
