"""Bytes go after the undo window, and the catalogue is told when they are gone."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from sqlalchemy import insert

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.catalog.v1 import file_pb2
from khomas.api.common.v1 import explanation_pb2
from khomas.api.storage.v1 import care_pb2, integrity_service_pb2, storage_element_pb2, transfer_pb2
from khomas.api.storage.v1 import storage_service_pb2 as pb
from khomas.api.storage.v1.integrity_service_pb2_grpc import IntegrityServiceStub
from khomas.storage.reconciling.testing import Place
from khomas.storage.tables import upload_commit
from khomas.storage.testing import Storage, until

Deletion = transfer_pb2.Deletion


async def listed(storage: Storage, filter_text: str = "") -> list[Deletion]:
    return list((await storage.stub.ListDeletions(pb.ListDeletionsRequest(filter=filter_text))).deletions)


async def test_deleted_file_is_gone_and_confirmed(storage: Storage) -> None:
    committed = await storage.store("/hess/raw/file", b"bytes")

    storage.catalog.delete("/hess/raw/file")

    async def confirmed() -> bool:
        return [one.state for one in await listed(storage)] == [Deletion.STATE_CONFIRMED]

    await until(confirmed)
    assert storage.catalog.files == {}
    assert not (storage.root / "hess").exists()
    (deletion,) = await listed(storage, 'state = CONFIRMED AND file = "/hess/raw/*"')
    assert (deletion.file_uid, deletion.path) == (committed.uid, "hess/raw/file")


async def test_undone_deletion_touches_nothing(storage: Storage) -> None:
    await storage.store("/hess/file", b"bytes")
    storage.catalog.delete("/hess/file", timedelta(hours=1))

    async def planned() -> bool:
        return [one.state for one in await listed(storage)] == [Deletion.STATE_WAITING]

    async def undone() -> bool:
        return [one.state for one in await listed(storage)] == [Deletion.STATE_UNDONE]

    await until(planned)
    storage.catalog.undelete("/hess/file")
    await until(undone)
    assert storage.visible() == ["hess/file"]


async def test_undo_that_we_have_not_heard_of_yet_is_kept(storage: Storage) -> None:
    await storage.store("/hess/file", b"bytes")
    storage.catalog.delete("/hess/file", timedelta(seconds=0.5))
    # The event of the undo never reaches us: only the question before the deletion can tell.
    storage.catalog.files["/hess/file"].state = file_pb2.File.STATE_ACTIVE

    async def undone() -> bool:
        return [one.state for one in await listed(storage)] == [Deletion.STATE_UNDONE]

    await until(undone)
    assert storage.visible() == ["hess/file"]


async def test_read_only_bytes_are_only_forgotten(storage: Storage, tmp_path: Path) -> None:
    root = tmp_path / "museum"
    root.mkdir()
    (root / "old").write_bytes(b"bytes")
    element = storage_element_pb2.StorageElement(name="storageElements/museum", read_only=True)
    element.media = storage_element_pb2.StorageElement.MEDIA_DISK
    element.access_points.add(protocol="posix", address=str(root))
    request = pb.CreateStorageElementRequest(storage_element=element, request_id=str(uuid4()))
    await storage.stub.CreateStorageElement(request)
    committed = await storage.store("/hess/file", b"bytes")
    file = storage.catalog.by_uid(committed.uid)
    file.replicas[0].storage_element, file.replicas[0].path = "museum", "old"

    storage.catalog.delete("/hess/file")

    async def gone() -> bool:
        return not storage.catalog.files

    await until(gone)
    assert (root / "old").read_bytes() == b"bytes"


async def test_bytes_that_another_file_has_taken_over_stay(storage: Storage) -> None:
    await storage.store("/hess/old", b"bytes")
    await storage.store("/hess/new", b"bytes")
    new = storage.catalog.files["/hess/new"]
    new.replicas[0].path = "hess/old"
    storage.catalog.tell("catalog.file.updated", new)

    storage.catalog.delete("/hess/old")

    async def gone() -> bool:
        return "/hess/old" not in storage.catalog.files

    await until(gone)
    assert "hess/old" in storage.visible()


async def test_bytes_that_a_commit_is_about_to_announce_stay(storage: Storage) -> None:
    await storage.store("/hess/old", b"bytes")
    # As of another process, which has got the path after the bytes of the old file were gone.
    commit = {
        **{name: name for name in ("uid", "request_key", "lease_owner")},
        **dict.fromkeys(("request_digest", "catalog_request"), b""),
        **{name: datetime.now(UTC) + timedelta(hours=1) for name in ("lease_expire_time", "create_time")},
        "placements": [["upload", 0, "local", "hess/old", "stamp"]],
        "memberships": [],
    }
    async with storage.parts.database.write() as connection:
        await connection.execute(insert(upload_commit), commit)

    storage.catalog.delete("/hess/old")

    async def gone() -> bool:
        return "/hess/old" not in storage.catalog.files

    await until(gone)
    assert storage.visible() == ["hess/old"]


async def test_failed_deletion_is_tried_again(storage: Storage) -> None:
    await storage.store("/hess/file", b"bytes")
    target = storage.root / "hess" / "file"
    target.unlink()
    target.mkdir()

    storage.catalog.delete("/hess/file")

    async def failed() -> bool:
        return any(one.attempts >= 2 and one.message for one in await listed(storage))

    async def confirmed() -> bool:
        return [one.state for one in await listed(storage)] == [Deletion.STATE_CONFIRMED]

    await until(failed)
    target.rmdir()
    await until(confirmed)


async def test_space_is_counted_and_given_back(storage: Storage) -> None:
    async def used() -> tuple[int, int]:
        element = await storage.stub.GetStorageElement(pb.GetStorageElementRequest(name="storageElements/local"))
        return element.space.used_bytes, element.space.file_count

    async def full() -> bool:
        return await used() == (5, 1)

    async def empty() -> bool:
        return await used() == (0, 0)

    await storage.store("/hess/file", b"bytes")
    await until(full)
    storage.catalog.delete("/hess/file")
    await until(empty)
    await asyncio.sleep(0)


async def explained(storage: Storage, name: str) -> explanation_pb2.Explanation:
    stub = IntegrityServiceStub(storage.served.channel)
    return await stub.ExplainDeletion(integrity_service_pb2.ExplainDeletionRequest(name=name))


async def test_deletion_says_until_when_it_can_be_undone_and_how(storage: Storage) -> None:
    await storage.store("/hess/file", b"bytes")
    storage.catalog.delete("/hess/file", timedelta(hours=1))

    async def planned() -> bool:
        return [one.reason for one in await listed(storage)] == [transfer_pb2.DELETION_REASON_UNDO_WINDOW]

    await until(planned, 60)
    (deletion,) = await listed(storage, "reason = UNDO_WINDOW")
    answer = await explained(storage, deletion.name)
    assert (answer.state, answer.reason) == ("WAITING", "UNDO_WINDOW")
    assert answer.remedies[1].command == "khomas undelete /hess/file"


async def test_storage_that_is_away_keeps_its_deletions_and_says_so(storage: Storage) -> None:
    await storage.store("/hess/file", b"bytes")
    away = storage.root.with_name("away")
    storage.root.rename(away)

    storage.catalog.delete("/hess/file")

    async def unreachable() -> bool:
        return [one.reason for one in await listed(storage)] == [transfer_pb2.DELETION_REASON_UNREACHABLE]

    async def confirmed() -> bool:
        return [one.state for one in await listed(storage)] == [Deletion.STATE_CONFIRMED]

    await until(unreachable, 60)
    assert storage.catalog.files
    away.rename(storage.root)
    await until(confirmed, 60)


async def test_storage_element_takes_no_more_deletions_a_second_than_it_may(storage: Storage) -> None:
    policy = care_pb2.CarePolicy(name="storageElements/local/carePolicy", deletions_per_second=0.01)
    request = integrity_service_pb2.UpdateCarePolicyRequest(care_policy=policy, request_id=str(uuid4()))
    request.update_mask.paths.append("deletions_per_second")
    await IntegrityServiceStub(storage.served.channel).UpdateCarePolicy(request)
    for name in ("/hess/a", "/hess/b"):
        await storage.store(name, b"bytes")

    storage.catalog.delete("/hess/a")
    storage.catalog.delete("/hess/b")

    async def one_gone() -> bool:
        return sorted(one.state for one in await listed(storage)) == [Deletion.STATE_WAITING, Deletion.STATE_CONFIRMED]

    await until(one_gone, 60)
    (waiting,) = await listed(storage, "state = WAITING")
    assert waiting.attempts == 0
    # The second one has its moment a hundred seconds after the first, however often it is looked at.
    assert len(storage.visible()) == 1


async def test_unknown_deletion_cannot_be_explained(storage: Storage) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await explained(storage, "deletions/none")

    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("place_url", ["sqlite", "postgresql"], indirect=True)
async def test_deletions_at_a_rate_all_come_to_their_turn(place: Place) -> None:
    policy = care_pb2.CarePolicy(name="storageElements/local/carePolicy", deletions_per_second=20)
    request = integrity_service_pb2.UpdateCarePolicyRequest(care_policy=policy, request_id=str(uuid4()))
    request.update_mask.paths.append("deletions_per_second")
    await place.integrity.UpdateCarePolicy(request)
    names = [f"/hess/{number}" for number in range(5)]
    for name in names:
        await place.storage.store(name, b"bytes")

    await place.catalog.BatchDeleteFiles(
        catalog_pb.BatchDeleteFilesRequest(
            names=names, reason="test", undo_window=Duration(nanos=1_000_000), request_id=str(uuid4())
        )
    )

    async def gone() -> bool:
        return [one.state for one in await listed(place.storage)] == [Deletion.STATE_CONFIRMED] * 5

    await until(gone, 90)
    assert place.storage.visible() == []
