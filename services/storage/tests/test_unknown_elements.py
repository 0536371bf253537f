"""A replica on a StorageElement that nobody knows protects nothing: imports name them, and typing errors."""

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import code_pb2

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.storage.v1 import drain_pb2, storage_element_pb2
from khomas.api.storage.v1 import placement_service_pb2 as pb
from khomas.api.storage.v1 import storage_service_pb2 as storage_pb
from khomas.kit.boundary.status import info_of
from khomas.storage.rules.protection import good_replicas
from khomas.storage.rules.testing import PATIENCE, Rule, World, running
from khomas.storage.testing import until


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running(tmp_path) as world:
        yield world


async def haunted(world: World, *names: str, element: str = "one", dataset: str = "") -> None:
    """Make files with a copy there, and with one that is nowhere."""
    await world.files(names, element, dataset)
    updates = []
    for name in names:
        change = catalog_pb.ReplicaUpdate(name=name)
        change.set.add(storage_element="nowhere", path=name[1:])
        updates.append(change)
    await world.catalog.BatchUpdateReplicas(
        catalog_pb.BatchUpdateReplicasRequest(updates=updates, request_id=str(uuid4()))
    )


async def test_last_replica_that_can_be_reached_is_not_deleted(world: World) -> None:
    await haunted(world, "/hess/file")

    request = pb.BatchDeleteReplicasRequest(request_id=str(uuid4()))
    request.replicas.add(file="/hess/file", storage_element="one")
    (answer,) = (await world.placement.BatchDeleteReplicas(request)).results

    assert answer.code != code_pb2.OK
    assert info_of(answer).reason == "LAST_REPLICA"
    assert world.lying("one") == ["hess/file"]


async def test_drain_copies_what_is_nowhere_else(world: World) -> None:
    await haunted(world, "/hess/file")
    request = pb.DrainStorageElementRequest(name="storageElements/one", request_id=str(uuid4()))
    await world.placement.DrainStorageElement(request)

    async def drained() -> bool:
        drain = await world.placement.GetDrain(pb.GetDrainRequest(name="drains/one"))
        return drain.state == drain_pb2.Drain.STATE_DRAINED

    await until(drained, PATIENCE)
    assert world.lying("one") == []
    # On "two", "three" or "local": wherever there is most room at the moment.
    (copy,) = [path for path in world.folder.rglob("hess/file") if ".khomas" not in path.parts]
    assert copy.stat().st_size > 0


async def test_cache_keeps_what_is_nowhere_else(world: World) -> None:
    await world.element("cache", capacity_bytes=20)
    await haunted(world, "/hess/a", "/hess/b", element="cache")
    await world.files(["/hess/c"], "cache")
    copy = catalog_pb.ReplicaUpdate(name="/hess/c")
    copy.set.add(storage_element="one", path="hess/c")
    await world.catalog.BatchUpdateReplicas(
        catalog_pb.BatchUpdateReplicasRequest(updates=[copy], request_id=str(uuid4()))
    )

    marks = storage_element_pb2.StorageElement(name="storageElements/cache", high_watermark=10, low_watermark=5)
    marks.media = storage_element_pb2.StorageElement.MEDIA_DISK
    marks.access_points.add(protocol="posix", address=str(world.folder / "cache"))
    mask = FieldMask(paths=["high_watermark", "low_watermark"])
    await world.storage.UpdateStorageElement(
        storage_pb.UpdateStorageElementRequest(storage_element=marks, update_mask=mask, request_id=str(uuid4()))
    )

    async def cleaned() -> bool:
        return "hess/c" not in world.lying("cache")

    await until(cleaned, PATIENCE)
    assert world.lying("cache") == ["hess/a", "hess/b"]


async def test_rule_has_no_source_in_what_is_nowhere(world: World) -> None:
    await haunted(world, "/hess/file", dataset="datasets/crab")
    bad = catalog_pb.ReplicaUpdate(name="/hess/file", remove=["one"])
    await world.catalog.BatchUpdateReplicas(
        catalog_pb.BatchUpdateReplicasRequest(updates=[bad], request_id=str(uuid4()))
    )

    rule = await world.becomes(await world.rule("two"), Rule.STATE_STUCK, stuck_copies=1)

    assert (await world.explained(rule)).reason == "NO_SOURCE"


def test_good_replicas_are_on_elements_that_are_known() -> None:
    file = catalog_pb.FileResult().file
    file.replicas.add(storage_element="one", state=1)
    file.replicas.add(storage_element="nowhere", state=1)

    assert good_replicas(file, {"one", "two"}) == {"one"}
