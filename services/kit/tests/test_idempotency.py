"""The same request_id has one effect and one answer."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Column, MetaData, Table, Text, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.catalog.v1 import catalog_service_pb2 as pb
from khomas.api.catalog.v1 import dataset_pb2
from khomas.kit.database import Database, RowId, count_statements
from khomas.kit.errors import RequestIdReused
from khomas.kit.idempotency import RETENTION, Once, answer_table

metadata = MetaData()
answers = answer_table(metadata)
thing = Table("thing", metadata, Column("id", RowId, primary_key=True), Column("name", Text))
unique = Table("unique_thing", metadata, Column("name", Text, primary_key=True))
ID = "0b4f9c0e-6e0f-4a57-9a3e-111111111111"


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url, metadata=metadata, migrations="nowhere:migrations")
    async with database.write() as connection:
        await connection.run_sync(metadata.create_all)
    yield database
    await database.close()


@pytest.fixture
def once(database: Database) -> Once:
    return Once(database, answers)


def request(name: str, request_id: str = ID) -> pb.CreateDatasetRequest:
    return pb.CreateDatasetRequest(dataset=dataset_pb2.Dataset(name=name), request_id=request_id)


async def create(once: Once, asked: pb.CreateDatasetRequest) -> dataset_pb2.Dataset:
    """Answer with the number that the database gave, which is another one at every real execution."""

    async def work(connection: AsyncConnection) -> dataset_pb2.Dataset:
        made = await connection.execute(insert(thing).values(name=asked.dataset.name).returning(thing.c.id))
        await asyncio.sleep(0.02)
        return dataset_pb2.Dataset(name=f"{asked.dataset.name}/{made.scalar_one()}")

    return await once(asked, dataset_pb2.Dataset, work)


async def count(database: Database, table: Table) -> int:
    async with database.read() as connection:
        return (await connection.execute(select(func.count()).select_from(table))).scalar_one()


async def test_retry_gets_the_first_answer_and_changes_nothing(database: Database, once: Once) -> None:
    first = await create(once, request("a"))
    assert await create(once, request("a")) == first
    assert await count(database, thing) == 1


async def test_same_id_for_another_request_is_refused(database: Database, once: Once) -> None:
    await create(once, request("a"))
    with pytest.raises(RequestIdReused):
        await create(once, request("b"))
    assert await count(database, thing) == 1


async def test_calls_in_flight_together_have_one_effect_and_one_answer(database: Database, once: Once) -> None:
    results = await asyncio.gather(*[create(once, request("a")) for _ in range(5)])
    assert len({result.name for result in results}) == 1
    assert await count(database, thing) == 1


async def test_retry_of_what_can_be_done_only_once_gets_the_first_answer(database: Database, once: Once) -> None:
    async def work(connection: AsyncConnection) -> dataset_pb2.Dataset:
        await connection.execute(insert(unique).values(name="a"))
        return dataset_pb2.Dataset(name="a")

    results = await asyncio.gather(*[once(request("a"), dataset_pb2.Dataset, work) for _ in range(3)])
    assert {result.name for result in results} == {"a"}


async def test_failed_work_leaves_the_id_unused(database: Database, once: Once) -> None:
    async def fail(connection: AsyncConnection) -> dataset_pb2.Dataset:
        await connection.execute(insert(thing).values(name="a"))
        await connection.execute(insert(unique), [{"name": "x"}, {"name": "x"}])
        raise AssertionError

    with pytest.raises(IntegrityError):
        await once(request("a"), dataset_pb2.Dataset, fail)
    assert await count(database, thing) == 0
    assert (await create(once, request("a"))).name


async def test_without_id_every_call_does_the_work(database: Database, once: Once) -> None:
    await create(once, request("a", request_id=""))
    await create(once, request("a", request_id=""))
    assert await count(database, thing) == 2


async def test_it_costs_one_statement(database: Database, once: Once) -> None:
    with count_statements(database) as statements:
        await create(once, request("a"))
    assert len(statements) == 2


async def test_old_answers_are_forgotten_and_young_ones_kept(database: Database, once: Once) -> None:
    await create(once, request("a"))
    old = datetime.now(UTC) - RETENTION - timedelta(minutes=1)
    async with database.write() as connection:
        await connection.execute(update(answers).values(create_time=old))
    await create(once, request("b", request_id="0b4f9c0e-6e0f-4a57-9a3e-222222222222"))
    await once.prune()
    assert await count(database, answers) == 1
