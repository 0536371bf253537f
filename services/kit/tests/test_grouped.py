"""Writes of many callers share a transaction, and nothing else."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from sqlalchemy import Column, MetaData, Table, Text, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.catalog.v1 import catalog_service_pb2 as pb
from khomas.api.catalog.v1 import dataset_pb2
from khomas.kit.database import Database, count_statements
from khomas.kit.database.grouped import Grouped
from khomas.kit.errors import RequestIdReused
from khomas.kit.idempotency import Once, OnceTogether, answer_table

metadata = MetaData()
answers = answer_table(metadata)
thing = Table("thing", metadata, Column("name", Text, primary_key=True))


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url, metadata=metadata, migrations="nowhere:migrations")
    async with database.write() as connection:
        await connection.run_sync(metadata.create_all)
    yield database
    await database.close()


async def write(connection: AsyncConnection, names: Sequence[str]) -> list[str]:
    await connection.execute(insert(thing), [{"name": name} for name in names])
    return [name.upper() for name in names]


async def names(database: Database) -> list[str]:
    async with database.read() as connection:
        return list((await connection.execute(select(thing.c.name).order_by(thing.c.name))).scalars())


def request(number: int, name: str) -> pb.CreateDatasetRequest:
    request_id = f"0b4f9c0e-6e0f-4a57-9a3e-{number:012d}"
    return pb.CreateDatasetRequest(dataset=dataset_pb2.Dataset(name=name), request_id=request_id)


@pytest.fixture
def together(database: Database) -> OnceTogether[str, dataset_pb2.Dataset]:
    async def work(connection: AsyncConnection, wanted: Sequence[str]) -> list[dataset_pb2.Dataset]:
        return [dataset_pb2.Dataset(name=name) for name in await write(connection, wanted)]

    return OnceTogether(Once(database, answers), dataset_pb2.Dataset, work)


async def test_items_that_come_together_cost_one_statement(database: Database) -> None:
    grouped = Grouped(database, write)
    with count_statements(database) as statements:
        results = await asyncio.gather(*[grouped(f"n{number:03d}") for number in range(100)])
    assert results == [f"N{number:03d}" for number in range(100)]
    assert len(statements) == 1
    assert len(await names(database)) == 100


async def test_item_that_fails_alone_spoils_nothing_for_the_others(database: Database) -> None:
    grouped = Grouped(database, write)
    results = await asyncio.gather(*[grouped(name) for name in ("a", "b", "a", "c")], return_exceptions=True)
    assert results[:2] == ["A", "B"]
    assert isinstance(results[2], IntegrityError)
    assert results[3] == "C"
    assert await names(database) == ["a", "b", "c"]


async def test_caller_who_gives_up_takes_nobody_along(database: Database) -> None:
    grouped = Grouped(database, write)
    first = asyncio.create_task(grouped("a"))
    second = asyncio.create_task(grouped("b"))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == "B"
    assert "b" in await names(database)


async def test_items_that_come_later_are_written_too(database: Database) -> None:
    grouped = Grouped(database, write)
    assert [await grouped(name) for name in ("a", "b")] == ["A", "B"]


async def test_repeated_request_of_a_group_gets_its_first_answer(
    database: Database, together: OnceTogether[str, dataset_pb2.Dataset]
) -> None:
    asked = [request(number, f"n{number}") for number in range(4)]
    first = await asyncio.gather(*[together(one, one.dataset.name) for one in asked])
    again = await asyncio.gather(*[together(one, one.dataset.name) for one in asked])
    assert first == again
    assert len(await names(database)) == 4


async def test_same_request_twice_in_one_group_is_done_once(
    database: Database, together: OnceTogether[str, dataset_pb2.Dataset]
) -> None:
    asked = request(1, "a")
    answers = await asyncio.gather(*[together(asked, "a") for _ in range(3)])
    assert [answer.name for answer in answers] == ["A"] * 3
    assert await names(database) == ["a"]


async def test_request_id_of_another_request_is_refused(together: OnceTogether[str, dataset_pb2.Dataset]) -> None:
    await together(request(1, "a"), "a")
    with pytest.raises(RequestIdReused):
        await together(request(1, "b"), "b")
