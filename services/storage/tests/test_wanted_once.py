"""What is wanted already is not wanted twice, also when callers come at the same moment, on both databases."""

import asyncio
import runpy
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock
from uuid import uuid4

import grpc
import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Connection, func, select

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.catalog.v1 import dataset_pb2
from khomas.api.storage.v1 import integrity_service_pb2, policy_pb2, reconciliation_pb2, rule_pb2, transfer_pb2
from khomas.api.storage.v1 import placement_service_pb2 as placement_pb
from khomas.api.storage.v1 import storage_service_pb2 as pb
from khomas.api.storage.v1.integrity_service_pb2_grpc import IntegrityServiceStub
from khomas.kit.boundary.status import reason_of
from khomas.kit.database import insert_many
from khomas.kit.ids import new_uid
from khomas.storage import app
from khomas.storage.app import migrate, open_database
from khomas.storage.catalog import Catalog
from khomas.storage.reconciling.runs import new_row as new_comparison
from khomas.storage.reconciling.tables import reconciliation
from khomas.storage.rules.policies import Policies
from khomas.storage.rules.rows import new_row as new_rule
from khomas.storage.rules.tables import rule
from khomas.storage.rules.testing import PATIENCE, World, running
from khomas.storage.tables import transfer
from khomas.storage.testing import until
from khomas.storage.transfers.queue import Queue

CANCELLED = transfer_pb2.Transfer.STATE_CANCELLED
WAITING = transfer_pb2.Transfer.STATE_WAITING


@pytest.fixture
async def world(tmp_path: Path, database_url: str) -> AsyncIterator[World]:
    async with running(tmp_path, database_urls={"storage": database_url}) as made:
        yield made


async def test_copies_that_several_want_at_once_are_made_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # One that was made meanwhile may be wanted again.
    monkeypatch.setattr(Queue, "claim", AsyncMock(return_value=[]))
    names = [f"/hess/{number:02}" for number in range(40)]
    await world.files(names)

    async def copy(order: list[str]) -> dict[str, str]:
        wanted = [transfer_pb2.Transfer(file=name, destination="two") for name in order]
        request = pb.BatchCreateTransfersRequest(transfers=wanted, request_id=str(uuid4()))
        answer = await world.storage.BatchCreateTransfers(request)
        return {result.transfer.file: result.transfer.name for result in answer.results}

    answers = await asyncio.gather(*[copy(names[:: (-1) ** number]) for number in range(6)])

    listed = (await world.storage.ListTransfers(pb.ListTransfersRequest(page_size=1000))).transfers
    assert sorted(one.file for one in listed) == names
    assert answers == [{one.file: one.name for one in listed}] * 6
    monkeypatch.undo()

    async def arrived() -> bool:
        request = pb.ListTransfersRequest(filter="state = SUCCEEDED", page_size=1000)
        return len((await world.storage.ListTransfers(request)).transfers) == 40

    await until(arrived, PATIENCE)
    assert world.lying("two") == [name.removeprefix("/") for name in names]


async def test_of_comparisons_that_several_want_at_once_one_begins(world: World) -> None:
    async def compare() -> str:
        wanted = reconciliation_pb2.Reconciliation(
            storage_element="one", mode=reconciliation_pb2.Reconciliation.MODE_QUICK
        )
        request = integrity_service_pb2.CreateReconciliationRequest(reconciliation=wanted, request_id=str(uuid4()))
        try:
            await IntegrityServiceStub(world.served.channel).CreateReconciliation(request)
        except grpc.aio.AioRpcError as error:
            return reason_of(error)
        return ""

    reasons = await asyncio.gather(*[compare() for _ in range(6)])

    assert sorted(reasons) == ["", *["RECONCILIATION_STATE"] * 5]


async def test_policies_that_several_processes_ask_make_one_rule_for_a_dataset(world: World) -> None:
    policy = policy_pb2.PlacementPolicy(name="policies/raw", dataset_pattern="datasets/raw*")
    policy.rule.CopyFrom(rule_pb2.ReplicationRule(expression="one", copies=1))
    await world.placement.CreatePolicy(placement_pb.CreatePolicyRequest(policy=policy, request_id=str(uuid4())))
    parts = world.served.services["storage"].parts
    unused: Any = None
    catalog = Catalog(world.served.channel, timedelta(seconds=10))
    policies = Policies(parts.database, parts.once, parts.log, catalog, rules=unused)
    done = asyncio.Event()

    async def another() -> None:
        while not done.is_set():
            await policies.work()
            await asyncio.sleep(0)

    others = [asyncio.create_task(another()) for _ in range(4)]
    for number in range(30):
        dataset = dataset_pb2.Dataset(name=f"datasets/raw{number}")
        request = catalog_pb.CreateDatasetRequest(dataset=dataset, request_id=str(uuid4()))
        await world.catalog.CreateDataset(request)
    rules = select(func.count()).select_from(rule).group_by(rule.c.dataset)

    async def made() -> list[int]:
        async with parts.database.read() as connection:
            return list((await connection.scalars(rules)).all())

    async def all_made() -> bool:
        return len(await made()) == 30

    await until(all_made, PATIENCE)
    done.set()
    await asyncio.gather(*others)
    assert await made() == [1] * 30


async def test_what_was_there_twice_is_there_once_after_the_migration(database_url: str) -> None:
    await migrate(database_url)
    database = open_database(database_url)
    given = rule_pb2.ReplicationRule(dataset="datasets/raw", expression="one", copies=1)
    rows: list[tuple[Any, list[dict[str, Any]]]] = [
        (transfer, [copy("a", "two"), copy("a", "three"), copy("b", "two"), copy("a", "two"), copy("a", "two", 20)]),
        (reconciliation, [new_comparison("one", 1, timedelta(0), "me") for _ in range(3)]),
        (rule, [new_rule(given, "me", policy) for policy in ("", "", "policies/raw", "policies/raw")]),
    ]
    async with database.write() as connection:
        for index in ("transfer_active", "reconciliation_unfinished", "rule_of_policy"):
            await connection.exec_driver_sql(f"DROP INDEX {index}")
        for table, some in rows:
            await insert_many(connection, table, some)

    async with database.write() as connection:
        await connection.run_sync(wanted_once)

    async with database.read() as connection:
        transfers = (await connection.execute(select(transfer).order_by(transfer.c.uid))).all()
        comparisons = (await connection.execute(select(reconciliation).order_by(reconciliation.c.uid))).all()
        policies = (await connection.scalars(select(rule.c.policy).order_by(rule.c.uid))).all()
    assert [row.state for row in transfers] == [WAITING, WAITING, WAITING, CANCELLED, 20]
    assert [row.end_time is not None for row in transfers] == [False, False, False, True, False]
    assert transfers[3].reason == transfer_pb2.TRANSFER_REASON_CANCELLED
    assert [row.state for row in comparisons] == [WAITING, CANCELLED, CANCELLED]
    assert policies == ["", "", "policies/raw", ""]
    await database.close()


def wanted_once(connection: Connection) -> None:
    """Do what the revision does."""
    (path,) = Path(app.__file__).parent.glob("migrations/*_wanted_once.py")
    with Operations.context(MigrationContext.configure(connection)):
        runpy.run_path(str(path))["upgrade"]()


def copy(file: str, destination: str, state: int = WAITING) -> dict[str, Any]:
    """Return a transfer as a row."""
    now = datetime.now(UTC)
    plain = ("sources", "origin", "owner", "message", "path")
    return {
        **dict.fromkeys(plain, ""),
        **dict.fromkeys(("priority", "max_attempts", "reason", "size_bytes", "attempt"), 0),
        **dict.fromkeys(("next_attempt_time", "create_time", "state_time"), now),
        "uid": new_uid(),
        "file": file,
        "file_uid": file,
        "destination": destination,
        "state": state,
    }
