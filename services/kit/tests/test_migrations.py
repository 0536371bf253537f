"""The history of a schema: written from the tables, applied once, checked at start."""

import asyncio
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Column, Float, ForeignKey, MetaData, Table, Text, insert, select

from khomas.kit.database import Database, KeyText, RowId, SchemaOutdated, UtcTime
from khomas.kit.database.migrations import differences, revise
from khomas.kit.events import cursor_table, event_table
from khomas.kit.idempotency import answer_table
from khomas.kit.leases import lease_columns


def tables(*, weight: bool) -> MetaData:
    metadata = MetaData()
    event_table(metadata)
    cursor_table(metadata)
    answer_table(metadata)
    more = [Column("weight", Float, nullable=False, server_default="0")] if weight else []
    Table(
        "thing",
        metadata,
        Column("id", RowId, primary_key=True),
        Column("name", KeyText, nullable=False, unique=True),
        Column("made", UtcTime, nullable=False, index=True),
        *lease_columns(),
        *more,
    )
    Table("part", metadata, Column("thing", ForeignKey("thing.id"), primary_key=True), Column("text", Text))
    return metadata


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make a package with an empty history and return where that is."""
    folder = tmp_path / "packages" / "kitexample"
    (folder / "migrations").mkdir(parents=True)
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(folder.parent)
    monkeypatch.delitem(sys.modules, "kitexample", raising=False)
    return "kitexample:migrations"


@pytest.fixture
async def database(database_url: str, package: str) -> AsyncIterator[Database]:
    database = Database(database_url, metadata=tables(weight=False), migrations=package)
    yield database
    await database.close()


@pytest.fixture
async def changed(database_url: str, package: str) -> AsyncIterator[Database]:
    """The same database for a program with a further column."""
    database = Database(database_url, metadata=tables(weight=True), migrations=package)
    yield database
    await database.close()


async def test_written_revision_makes_exactly_the_tables_of_the_code(database: Database) -> None:
    await revise(database, "Initial")
    await database.upgrade()
    assert await differences(database) == []
    await database.check()


async def test_second_revision_changes_a_table_and_keeps_its_rows(database: Database, changed: Database) -> None:
    await revise(database, "Initial")
    await database.upgrade()
    async with database.write() as connection:
        thing = {"id": 1, "name": "a", "made": datetime(2024, 5, 1, tzinfo=UTC)}
        await connection.execute(insert(database.metadata.tables["thing"]).values(thing))
        await connection.execute(insert(database.metadata.tables["part"]).values(thing=1, text="a"))
    await revise(changed, "Add the weight")
    await changed.upgrade()
    assert await differences(changed) == []
    async with changed.read() as connection:
        assert (await connection.execute(select(changed.metadata.tables["thing"].c.weight))).scalars().all() == [0]
        assert (await connection.execute(select(changed.metadata.tables["part"].c.text))).scalars().all() == ["a"]


async def test_empty_database_is_refused_with_the_command_that_helps(database: Database) -> None:
    await revise(database, "Initial")
    with pytest.raises(SchemaOutdated, match="run `khomas-kitexample migrate`"):
        await database.check()


async def test_older_schema_is_refused(database: Database, changed: Database) -> None:
    await revise(database, "Initial")
    await database.upgrade()
    await revise(changed, "Add the weight")
    with pytest.raises(SchemaOutdated, match=r"0001.*0002"):
        await changed.check()


async def test_newer_schema_is_accepted_while_an_update_rolls(database: Database) -> None:
    await revise(database, "Initial")
    await database.upgrade()
    async with database.write() as connection:
        await connection.exec_driver_sql("UPDATE kitexample_schema SET version_num = '0002'")
    await database.check()
    await database.upgrade()


async def test_upgrades_at_the_same_time_do_not_collide(database: Database, database_url: str, package: str) -> None:
    await revise(database, "Initial")
    others = [Database(database_url, metadata=database.metadata, migrations=package) for _ in range(4)]
    await asyncio.gather(*[other.upgrade() for other in others])
    await asyncio.gather(*[other.check() for other in others])
    for other in others:
        await other.close()


async def test_tables_that_lack_a_revision_are_named(database: Database, changed: Database) -> None:
    await revise(database, "Initial")
    await database.upgrade()
    [difference] = await differences(changed)
    assert "weight" in difference


async def test_revision_written_on_sqlite_fits_postgresql(package: str, tmp_path: Path, postgresql_url: str) -> None:
    small = Database(f"sqlite+aiosqlite:///{tmp_path / 'history.db'}", metadata=tables(weight=True), migrations=package)
    large = Database(postgresql_url, metadata=small.metadata, migrations=package)
    await revise(small, "Initial")
    for database in (small, large):
        await database.upgrade()
        assert await differences(database) == []
        await database.close()
