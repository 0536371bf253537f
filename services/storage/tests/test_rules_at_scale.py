"""A rule on many files costs a fixed number of statements a batch, on both databases."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import func, insert, select

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.catalog.v1 import file_pb2
from khomas.api.catalog.v1.catalog_service_pb2_grpc import CatalogServiceStub
from khomas.api.common.v1 import checksum_pb2, event_pb2
from khomas.api.storage.v1 import rule_pb2, storage_element_pb2
from khomas.kit.database import Database, count_statements
from khomas.kit.events import EventLog
from khomas.kit.idempotency import Once
from khomas.kit.ids import new_uid
from khomas.kit.plugins import installed, load
from khomas.kit.testing import Served, serve
from khomas.storage import tables
from khomas.storage.app import open_database
from khomas.storage.catalog import Catalog
from khomas.storage.config import StorageSettings
from khomas.storage.elements.elements import Elements, Protocols
from khomas.storage.recalls.online import Online
from khomas.storage.rules import events
from khomas.storage.rules.evaluation import Evaluation
from khomas.storage.rules.membership import Membership
from khomas.storage.rules.rows import new_row
from khomas.storage.rules.starting import Starting
from khomas.storage.rules.tables import rule, rule_copy
from khomas.storage.transfers.transferring import Transferring

Rule = rule_pb2.ReplicationRule
FILES = 10_000


@dataclass(frozen=True)
class Bench:
    """An evaluation without the loops of a service, so that its statements can be counted."""

    served: Served
    database: Database
    evaluation: Evaluation

    async def files(self, first: int, count: int, dataset: str) -> None:
        request = catalog_pb.BatchCreateFilesRequest(datasets=[dataset], request_id=str(uuid4()))
        for number in range(first, first + count):
            name = f"/hess/{number:06}"
            file = request.files.add(name=name, size_bytes=5, checksums=checksum_pb2.Checksums(adler32="066c0228"))
            file.replicas.add(storage_element="one", path=name.lstrip("/"))
        await CatalogServiceStub(self.served.channel).BatchCreateFiles(request, timeout=120)

    async def rule(self, dataset: str, copies: int) -> str:
        row = new_row(Rule(dataset=dataset, expression="*", copies=copies), "tester")
        async with self.database.write() as connection:
            await connection.execute(insert(rule), row)
        return str(row["uid"])

    async def work(self) -> int:
        """Do what is due; return how many statements that took."""
        with count_statements(self.database) as statements:
            await self.evaluation.work()
        return len(statements)

    async def copies(self, uid: str) -> dict[str, int]:
        query = select(rule_copy.c.storage_element, func.count()).where(rule_copy.c.rule_uid == uid)
        async with self.database.read() as connection:
            rows = (await connection.execute(query.group_by(rule_copy.c.storage_element))).all()
        return {row[0]: row[1] for row in rows}


@pytest.fixture
async def bench(database_url: str, tmp_path: Path) -> AsyncIterator[Bench]:
    database = open_database(database_url)
    await database.upgrade()
    catalogue = load(installed("khomas.services")["catalog"])
    async with serve(catalogue, state=tmp_path / "state") as served:
        log, once, elements = EventLog(database, tables.event), Once(database, tables.answer), Elements(database)
        async with database.write() as connection:
            for name in ("one", "two", "three"):
                await connection.execute(insert(tables.storage_element), element(name))
        catalog, settings = Catalog(served.channel, timedelta(seconds=120)), StorageSettings()
        online = Online(database, log, elements, Protocols({}, {}), settings.recall_lifetime)
        transferring = Transferring.built(
            settings, database, log, once, elements, Protocols({}, {}), catalog, {}, "tester", online
        )
        evaluation = Evaluation(
            database,
            log,
            elements,
            Membership(catalog),
            Starting(database, transferring.transfers),
            owner="tester",
            lease=timedelta(minutes=10),
            pause=timedelta(minutes=5),
        )
        yield Bench(served, database, evaluation)
        await transferring.outside.close()
    await database.close()


def element(name: str) -> dict[str, object]:
    now = datetime.now(UTC)
    return {
        "id": name,
        "uid": new_uid(),
        "description": "",
        "site": "",
        "media": storage_element_pb2.StorageElement.MEDIA_DISK,
        "access_points": [["posix", "/nowhere"]],
        "read_only": False,
        "capacity_bytes": 0,
        "create_time": now,
        "update_time": now,
        "version": 1,
        "free_bytes": -1,
        "reachable": True,
        "message": "",
        "check_time": now,
    }


async def test_ten_times_the_files_cost_ten_times_the_batches(bench: Bench) -> None:
    await bench.files(0, FILES // 10, "datasets/few")
    await bench.files(FILES // 10, FILES, "datasets/many")
    few = await bench.rule("datasets/few", copies=2)
    for_few = await bench.work()
    many = await bench.rule("datasets/many", copies=2)
    for_many = await bench.work()

    assert (await bench.copies(few))["one"] == FILES // 10
    assert sum((await bench.copies(many)).values()) == 2 * FILES
    # Listing and starting: two batches a thousand files, each with a fixed number of statements.
    assert for_many - for_few <= 9 * 20
    assert for_few <= 60


async def test_ten_thousand_files_that_join_or_change_cost_a_few_statements_an_event(bench: Bench) -> None:
    await bench.files(0, 1, "datasets/crab")
    uid = await bench.rule("datasets/crab", copies=1)
    await bench.work()
    names = [f"/hess/{number:06}" for number in range(1, FILES + 1)]
    await bench.files(1, FILES, "datasets/crab")
    event = event_pb2.Event(kind="catalog.dataset.files_added")
    event.resource.Pack(catalog_pb.DatasetChange(dataset="datasets/crab", added=names))

    with count_statements(bench.database) as statements:
        async with bench.database.write() as connection:
            await events.note_datasets(connection, [event])
    joining = len(statements)
    taking_in = await bench.work()

    assert await bench.copies(uid) == {"one": FILES + 1}
    assert joining <= 4
    assert taking_in <= 30 + 10 * 10
    lost = {}
    async with bench.database.read() as connection:
        for row in (await connection.execute(select(rule_copy).where(rule_copy.c.rule_uid == uid))).all():
            file = file_pb2.File(uid=row.file_uid, name=row.file, state=file_pb2.File.STATE_ACTIVE)
            file.replicas.add(storage_element="two", state=file_pb2.Replica.STATE_AVAILABLE)
            lost[row.file_uid] = file
    with count_statements(bench.database) as statements:
        async with bench.database.write() as connection:
            await events.note_files(connection, lost)
    assert len(statements) <= 6
    assert await bench.copies(uid) == {"": FILES + 1}
