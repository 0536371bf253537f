"""Every byte of every replica is read again in its time; what differs is repaired."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from google.protobuf.duration_pb2 import Duration
from sqlalchemy import select

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.catalog.v1.file_pb2 import File, Replica
from khomas.api.storage.v1 import care_pb2
from khomas.api.storage.v1 import integrity_service_pb2 as pb
from khomas.api.storage.v1.incident_pb2 import Incident
from khomas.storage.elements.elements import Element
from khomas.storage.reconciling.findings import Finding
from khomas.storage.reconciling.looking import Looking
from khomas.storage.reconciling.sides import Wanted
from khomas.storage.reconciling.testing import PATIENCE, Place
from khomas.storage.tables import replica
from khomas.storage.testing import until

YEARS_AGO = 1_000_000_000
BOTH = pytest.mark.parametrize("place_url", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def settings() -> dict[str, Any]:
    return {"fixity_poll": 0.1}


async def verified_long_ago(place: Place, *names: str) -> None:
    """Let the catalogue think that nobody has read these replicas for years."""
    updates = []
    for name in names:
        copy = await place.replica(name)
        assert copy is not None
        copy.verify_time.FromSeconds(YEARS_AGO)
        updates.append(catalog_pb.ReplicaUpdate(name=name, set=[copy]))
    request = catalog_pb.BatchUpdateReplicasRequest(updates=updates, request_id=str(uuid4()))
    await place.catalog.BatchUpdateReplicas(request)


async def test_old_replicas_are_read_again_and_the_catalogue_knows_when(place: Place) -> None:
    await place.stored("/hess/a", "/hess/b")

    await verified_long_ago(place, "/hess/a", "/hess/b")

    async def young() -> bool:
        times = [(await place.replica(name)) for name in ("/hess/a", "/hess/b")]
        return all(one is not None and one.verify_time.seconds > YEARS_AGO for one in times)

    await until(young, PATIENCE)
    assert await place.incidents() == []


@BOTH
async def test_byte_that_has_flipped_is_found_and_repaired(place: Place) -> None:
    await place.stored("/hess/good", "/hess/flipped")
    place.lay("hess/flipped", b"/hess/Flipped")

    await verified_long_ago(place, "/hess/flipped")

    async def repaired() -> bool:
        return [one.state for one in await place.incidents()] == [Incident.STATE_RESOLVED]

    await until(repaired, PATIENCE)
    (found,) = await place.incidents()
    assert (found.kind, found.origin) == (Incident.KIND_CHECKSUM, "fixity")
    copy = await place.replica("/hess/flipped")
    assert copy is not None
    assert (copy.state, (place.mirror / copy.path).read_bytes()) == (Replica.STATE_AVAILABLE, b"/hess/flipped")


async def never_read(place: Place, *, never: bool) -> None:
    """Let no replica of the mirror be read any more, or those that are due."""
    policy = care_pb2.CarePolicy(name="storageElements/mirror/carePolicy")
    if not never:
        policy.verify_period.FromTimedelta(timedelta(days=90))
    request = pb.UpdateCarePolicyRequest(care_policy=policy, request_id=str(uuid4()))
    request.update_mask.paths.append("verify_period")
    await place.integrity.UpdateCarePolicy(request)


async def test_file_that_is_deleted_while_others_are_read_keeps_none_of_them_from_being_verified(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["/hess/a", "/hess/gone", "/hess/z"]
    await never_read(place, never=True)
    await place.stored(*names)
    await verified_long_ago(place, *names)
    uid = (await place.file("/hess/gone")).uid
    unlike = Looking.unlike

    async def known() -> bool:
        old = select(replica).where(
            replica.c.storage_element == "mirror", replica.c.verify_time < datetime(2002, 1, 1, tzinfo=UTC)
        )
        async with place.storage.parts.database.read() as connection:
            return len((await connection.execute(old)).all()) == 3

    async def gone() -> bool:
        request = catalog_pb.BatchGetFilesRequest(names=[f"files/{uid}"])
        (found,) = (await place.catalog.BatchGetFiles(request)).results
        return found.HasField("error") or found.file.state == File.STATE_DELETED

    async def deleting(looking: Looking, element: Element, wanted: Sequence[Wanted], *, read: bool) -> list[Finding]:
        found = await unlike(looking, element, wanted, read=read)
        request = catalog_pb.BatchDeleteFilesRequest(names=["/hess/gone"], reason="not wanted", undo_window=Duration())
        request.request_id = uid
        await place.catalog.BatchDeleteFiles(request)
        await until(gone, PATIENCE)
        return found

    await until(known, PATIENCE)
    monkeypatch.setattr(Looking, "unlike", deleting)

    await never_read(place, never=False)

    async def verified() -> bool:
        copies = [await place.replica(name) for name in ("/hess/a", "/hess/z")]
        return all(copy is not None and copy.verify_time.seconds > YEARS_AGO for copy in copies)

    await until(verified, PATIENCE)


async def local_copy_was_read(place: Place, name: str) -> None:
    """Let a copy on the other storage element be due, and wait until it was read."""
    local = await place.replica(name, "local")
    assert local is not None
    local.verify_time.FromSeconds(YEARS_AGO)
    update = catalog_pb.ReplicaUpdate(name=name, set=[local])
    await place.catalog.BatchUpdateReplicas(
        catalog_pb.BatchUpdateReplicasRequest(updates=[update], request_id=str(uuid4()))
    )

    async def young() -> bool:
        found = await place.replica(name, "local")
        return found is not None and found.verify_time.seconds > YEARS_AGO

    await until(young, PATIENCE)


async def test_nothing_is_read_where_the_policy_says_never(place: Place) -> None:
    await place.stored("/hess/never", "/hess/control")
    await never_read(place, never=True)
    # Whatever was begun before is done then.
    await local_copy_was_read(place, "/hess/control")
    place.lay("hess/never", b"/hess/Never")

    await verified_long_ago(place, "/hess/never")
    await local_copy_was_read(place, "/hess/control")

    assert await place.incidents() == []
    assert "hess/never" in place.lies()


@BOTH
async def test_policy_is_kept_and_what_was_not_named_stays(place: Place) -> None:
    name = "storageElements/mirror/carePolicy"
    before = await place.integrity.GetCarePolicy(pb.GetCarePolicyRequest(name=name))
    policy = care_pb2.CarePolicy(name=name, verify_bytes_per_second=1000, max_lost_percent=77)
    request = pb.UpdateCarePolicyRequest(care_policy=policy, request_id=str(uuid4()))
    request.update_mask.paths.append("verify_bytes_per_second")

    changed = await place.integrity.UpdateCarePolicy(request)

    assert (changed.verify_bytes_per_second, changed.max_lost_percent) == (1000, before.max_lost_percent)
    assert changed == await place.integrity.GetCarePolicy(pb.GetCarePolicyRequest(name=name))
