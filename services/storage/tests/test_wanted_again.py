"""A copy that is wanted while its old replica is deleted is there when that is said, and stays."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import code_pb2
from sqlalchemy import select, update

from khomas.api.catalog.v1 import file_pb2
from khomas.api.storage.v1 import care_pb2, integrity_service_pb2, placement_service_pb2
from khomas.api.storage.v1 import storage_service_pb2 as pb
from khomas.api.storage.v1.integrity_service_pb2_grpc import IntegrityServiceStub
from khomas.api.storage.v1.placement_service_pb2_grpc import PlacementServiceStub
from khomas.api.storage.v1.transfer_pb2 import DELETION_REASON_PROTECTED, DELETION_REASON_RATE, Deletion, Transfer
from khomas.kit.database import Database, insert_many
from khomas.kit.events import EventLog
from khomas.storage.deletions.deletions import Deletions
from khomas.storage.deletions.taking_back import take_back
from khomas.storage.elements.elements import Elements, Protocols
from khomas.storage.tables import deletion, event, transfer
from khomas.storage.testing import Storage, until


@pytest.fixture
def settings() -> dict[str, Any]:
    return {"transfer_attempts": 100}


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    (tmp_path / "mirror").mkdir()
    return tmp_path / "mirror"


async def copy(storage: Storage, name: str) -> Transfer:
    wanted = [Transfer(file=name, destination="mirror")]
    request = pb.BatchCreateTransfersRequest(transfers=wanted, request_id=str(uuid4()))
    return (await storage.stub.BatchCreateTransfers(request)).results[0].transfer


async def copied(storage: Storage, name: str) -> None:
    made = await copy(storage, name)

    async def there() -> bool:
        found = await storage.stub.GetTransfer(pb.GetTransferRequest(name=made.name))
        return found.state == Transfer.STATE_SUCCEEDED

    await until(there)


async def stored(storage: Storage, mirror: Path, *names: str) -> None:
    """Bring files in, with a second copy on the mirror."""
    await storage.element("mirror", mirror)
    for name in names:
        await storage.store(name, b"bytes")
        await copied(storage, name)


async def remove(storage: Storage, name: str) -> int:
    """Have the copy on the mirror deleted; return the code of the answer."""
    request = placement_service_pb2.BatchDeleteReplicasRequest(request_id=str(uuid4()))
    request.replicas.add(file=name, storage_element="mirror")
    answer = await PlacementServiceStub(storage.served.channel).BatchDeleteReplicas(request)
    return answer.results[0].code


async def deletions(storage: Storage, filter_text: str = "") -> Sequence[Deletion]:
    return (await storage.stub.ListDeletions(pb.ListDeletionsRequest(filter=filter_text))).deletions


async def slow(storage: Storage) -> None:
    """Let the mirror take one deletion in a hundred seconds."""
    policy = care_pb2.CarePolicy(name="storageElements/mirror/carePolicy", deletions_per_second=0.01)
    mask = FieldMask(paths=["deletions_per_second"])
    request = integrity_service_pb2.UpdateCarePolicyRequest(
        care_policy=policy, update_mask=mask, request_id=str(uuid4())
    )
    await IntegrityServiceStub(storage.served.channel).UpdateCarePolicy(request)


def replicas(storage: Storage, name: str) -> list[str]:
    return sorted(one.storage_element for one in storage.catalog.files[name].replicas)


async def test_copy_wanted_while_its_deletion_is_tried_comes_after_it(storage: Storage, mirror: Path) -> None:
    await stored(storage, mirror, "/hess/file")
    away = mirror.with_name("away")
    mirror.rename(away)  # noqa: ASYNC240  a test may block
    await remove(storage, "/hess/file")

    async def tried() -> bool:
        return any(one.attempts for one in await deletions(storage))

    await until(tried)
    again = await copy(storage, "/hess/file")
    assert again.state == Transfer.STATE_WAITING
    away.rename(mirror)

    async def arrived() -> bool:
        found = await storage.stub.GetTransfer(pb.GetTransferRequest(name=again.name))
        assert found.state not in (Transfer.STATE_FAILED, Transfer.STATE_CANCELLED), found
        return found.state == Transfer.STATE_SUCCEEDED

    await until(arrived)
    assert [one.state for one in await deletions(storage)] == [Deletion.STATE_CONFIRMED]
    assert (mirror / "hess" / "file").read_bytes() == b"bytes"
    assert replicas(storage, "/hess/file") == ["local", "mirror"]


async def test_deletion_that_waits_for_its_moment_is_taken_back_by_who_wants_the_copy(
    storage: Storage, mirror: Path
) -> None:
    await stored(storage, mirror, "/hess/first", "/hess/file")
    await slow(storage)
    await remove(storage, "/hess/first")
    await remove(storage, "/hess/file")

    async def waits() -> bool:
        found = await deletions(storage, 'file = "/hess/file" AND state = WAITING')
        return [one.reason for one in found] == [DELETION_REASON_RATE]

    await until(waits)
    again = await copy(storage, "/hess/file")

    assert (again.state, again.message) == (Transfer.STATE_SUCCEEDED, "The file has a replica there already.")
    (undone,) = await deletions(storage, 'file = "/hess/file"')
    assert (undone.state, undone.message) == (Deletion.STATE_UNDONE, "It is wanted there again.")
    assert (mirror / "hess" / "file").exists()


async def test_replica_has_one_deletion_however_often_it_is_asked_for(storage: Storage, mirror: Path) -> None:
    await stored(storage, mirror, "/hess/first", "/hess/file")
    await slow(storage)
    await remove(storage, "/hess/first")

    answers = await asyncio.gather(*[remove(storage, "/hess/file") for _ in range(3)])

    assert answers == [code_pb2.OK] * 3
    assert len(await deletions(storage, 'file = "/hess/file"')) == 1


async def test_copy_that_was_deleted_once_is_still_found_there(storage: Storage, mirror: Path) -> None:
    await stored(storage, mirror, "/hess/file")
    await remove(storage, "/hess/file")

    async def gone() -> bool:
        return replicas(storage, "/hess/file") == ["local"]

    await until(gone)
    await copied(storage, "/hess/file")
    await copied(storage, "/hess/file")

    found = (await storage.stub.ListTransfers(pb.ListTransfersRequest())).transfers
    assert [one.message for one in found] == ["", "", "The file has a replica there already."]
    assert replicas(storage, "/hess/file") == ["local", "mirror"]


async def test_replica_on_an_element_that_is_drained_is_not_promised(storage: Storage, mirror: Path) -> None:
    await stored(storage, mirror, "/hess/first", "/hess/file")
    await slow(storage)
    await remove(storage, "/hess/first")
    await remove(storage, "/hess/file")
    request = placement_service_pb2.DrainStorageElementRequest(name="storageElements/mirror", request_id=str(uuid4()))
    await PlacementServiceStub(storage.served.channel).DrainStorageElement(request)

    again = await copy(storage, "/hess/file")

    assert again.state == Transfer.STATE_WAITING
    assert [one.state for one in await deletions(storage, 'file = "/hess/file"')] == [Deletion.STATE_WAITING]


async def test_deletion_leaves_alone_what_a_transfer_is_bringing(storage: Storage, mirror: Path) -> None:
    await stored(storage, mirror, "/hess/file")
    storage.catalog.files["/hess/file"].replicas[1].state = file_pb2.Replica.STATE_SUSPECT
    async with storage.parts.database.write() as connection:
        # As of another process.
        running = {"state": Transfer.STATE_RUNNING, "lease_owner": "another", "end_time": None}
        later = datetime.now(UTC) + timedelta(hours=1)
        await connection.execute(update(transfer).values(**running, lease_expire_time=later))
    await remove(storage, "/hess/file")

    async def undone() -> bool:
        return [one.state for one in await deletions(storage)] == [Deletion.STATE_UNDONE]

    await until(undone)
    (kept,) = await deletions(storage)
    assert kept.reason == DELETION_REASON_PROTECTED
    assert kept.message.endswith(" brings a copy there.")
    assert (mirror / "hess" / "file").exists()


def planned(uid: str, **values: Any) -> dict[str, Any]:
    now = datetime.now(UTC)
    names = {"uid": uid, "file": f"/{uid}", "file_uid": uid, "storage_element": "mirror", "path": uid, "message": ""}
    times = {"next_attempt_time": now, "create_time": now, "end_time": None}
    lease = {"lease_owner": None, "lease_expire_time": None}
    return {**names, **times, **lease, "state": Deletion.STATE_WAITING, "attempts": 0, "single": True, **values}


async def test_deletion_that_somebody_has_begun_is_not_taken_back(database: Database) -> None:
    leased = {"lease_owner": "somebody", "lease_expire_time": datetime.now(UTC)}
    rows = [planned("a"), planned("b", attempts=1), planned("c", **leased), planned("d", single=False)]
    async with database.write() as connection:
        await insert_many(connection, deletion, rows)
        await take_back(connection, EventLog(database, event), "", deletion.c.storage_element == "mirror")

        query = select(deletion.c.uid).where(deletion.c.state == Deletion.STATE_UNDONE)
        assert list(await connection.scalars(query)) == ["a"]


class Dies:
    """A catalogue at whose first question the process dies."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def files(self, names: Sequence[str]) -> None:
        self.asked.set()
        await asyncio.Event().wait()


class NoRates:
    """Policies that bound nothing."""

    async def ensure_rows(self) -> None:
        """Do nothing."""

    async def all(self) -> dict[str, Any]:
        return {}


async def test_deletion_is_known_to_have_begun_by_a_process_that_dies_with_it(database: Database) -> None:
    async with database.write() as connection:
        await insert_many(connection, deletion, [planned("a")])
    catalog: Any = Dies()
    rates: Any = NoRates()
    log, lease = EventLog(database, event), timedelta(seconds=60)
    elements, protocols = Elements(database), Protocols({}, {})
    dying = Deletions(database, log, catalog, elements, protocols, rates, owner="a", lease=lease, pause=lease)
    work = asyncio.create_task(dying.work())
    await asyncio.wait_for(catalog.asked.wait(), 60)
    work.cancel()
    async with database.write() as connection:
        # As at the next start.
        await connection.execute(update(deletion).values(lease_owner=None, lease_expire_time=None))

        await take_back(connection, log, "", deletion.c.uid == "a")

        assert list(await connection.scalars(select(deletion.c.state))) == [Deletion.STATE_WAITING]
