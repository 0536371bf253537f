"""Uploads are opened where there is space, and closed in time."""

import os
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from sqlalchemy import update

from khomas.api.storage.v1 import grant_pb2, storage_element_pb2, transfer_pb2
from khomas.api.storage.v1 import storage_service_pb2 as pb
from khomas.api.storage.v1.storage_service_pb2_grpc import StorageServiceStub
from khomas.kit.boundary.call import current_call
from khomas.kit.boundary.status import reason_of
from khomas.kit.database import count_statements
from khomas.storage import tables
from khomas.storage.elements.elements import Usage
from khomas.storage.elements.space import Usages, usages
from khomas.storage.testing import Storage, until

DISK = storage_element_pb2.StorageElement.MEDIA_DISK


async def element(storage: Storage, name: str, root: Path, **fields: Any) -> None:
    made = storage_element_pb2.StorageElement(name=f"storageElements/{name}", media=DISK, **fields)
    made.access_points.add(protocol="posix", address=str(root))
    request = pb.CreateStorageElementRequest(storage_element=made, request_id=str(uuid4()))
    await storage.stub.CreateStorageElement(request)


async def refusal(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return reason_of(caught.value)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of one megabyte; without the right to mount, make the writer hit its limit in a real way."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root; the quota test covers the refusal at opening")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("settings", [{"poll": timedelta(hours=1)}])
async def test_thousand_uploads_cost_six_statements(storage: Storage) -> None:
    wanted = [grant_pb2.Upload(reserve_bytes=1)] * 1000
    request = pb.BatchCreateUploadsRequest(uploads=wanted, request_id=str(uuid4()))

    with count_statements(storage.parts.database, current_call) as statements:
        uploads = (await storage.stub.BatchCreateUploads(request)).uploads

    assert 0 < len(statements) <= 6, statements
    assert len({upload.name for upload in uploads}) == 1000


async def test_repeated_request_gives_the_same_uploads(storage: Storage) -> None:
    request = pb.BatchCreateUploadsRequest(uploads=[grant_pb2.Upload()], request_id=str(uuid4()))

    first = await storage.stub.BatchCreateUploads(request)

    assert await storage.stub.BatchCreateUploads(request) == first


async def test_first_storage_with_space_is_taken(storage: Storage, tmp_path: Path) -> None:
    for name, capacity in (("tiny", 100), ("large", 0)):
        (tmp_path / name).mkdir()
        await element(storage, name, tmp_path / name, capacity_bytes=capacity)

    upload = await storage.open(storage_elements=["tiny", "large"], reserve_bytes=101)

    assert upload.grant.storage_element == "large"


async def test_reservations_of_others_count(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    await element(storage, "tiny", tmp_path / "tiny", capacity_bytes=100)
    await storage.open(storage_elements=["tiny"], reserve_bytes=60)

    assert await refusal(storage.open(storage_elements=["tiny"], reserve_bytes=60)) == "NO_SPACE"


async def test_what_is_on_its_way_counts_within_a_second(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    await element(storage, "gone", tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    file = await storage.store("/hess/file", b"x" * 60)
    lately = Usages()
    async with storage.parts.database.read() as connection:
        await lately.read(connection)

    # It is tried again and again.
    copy = transfer_pb2.Transfer(file=file.name, destination="gone")
    await storage.stub.BatchCreateTransfers(pb.BatchCreateTransfersRequest(transfers=[copy], request_id=str(uuid4())))

    async def counted() -> bool:
        async with storage.parts.database.read() as connection:
            assert (await usages(connection))["gone"].reserved_bytes == 60
            found = await lately.read(connection)
        return found.get("gone", Usage()).reserved_bytes == 60 and found["local"].used_bytes == 60

    await until(counted, 10)


async def test_unknown_read_only_and_missing_storage_are_told_apart(storage: Storage, tmp_path: Path) -> None:
    for name in ("museum", "broken"):
        (tmp_path / name).mkdir()
        await element(storage, name, tmp_path / name, read_only=name == "museum")
    (tmp_path / "broken").rmdir()

    assert await refusal(storage.open(storage_elements=["nowhere"])) == "STORAGE_ELEMENT_NOT_FOUND"
    assert await refusal(storage.open(storage_elements=["museum"])) == "STORAGE_ELEMENT_READ_ONLY"
    assert await refusal(storage.open(storage_elements=["broken"])) == "STORAGE_ELEMENT_UNREACHABLE"


async def test_full_disk_refuses_the_put_and_leaves_nothing(storage: Storage, small_disk: Path) -> None:
    await element(storage, "small", small_disk)
    upload = await storage.open(storage_elements=["small"])

    status, answer = await storage.put(upload, b"x" * 3_000_000)

    assert (status, answer["reason"]) == (507, "NO_SPACE")
    assert not [path for path in small_disk.rglob("*") if path.is_file()]  # noqa: ASYNC240  a test may block
    assert (await storage.put(upload, b"fits"))[0] == 201


async def test_abandoned_upload_is_gone_and_may_be_given_up_again(storage: Storage) -> None:
    upload = await storage.open()
    await storage.put(upload, b"bytes")

    for _ in range(2):
        request = pb.BatchAbandonUploadsRequest(names=[upload.name], request_id=str(uuid4()))
        await storage.stub.BatchAbandonUploads(request)

    assert (await storage.uploads(upload))[0].state == grant_pb2.Upload.STATE_ABANDONED
    assert not Path(upload.grant.local_path).exists()  # noqa: ASYNC240  a test may block
    assert (await storage.put(upload, b"more"))[0] == 409


async def test_committed_upload_cannot_be_given_up(storage: Storage) -> None:
    upload = await storage.open()
    await storage.put(upload, b"bytes")
    await storage.commit(storage.wanted(upload, "/hess/file", b"bytes"))

    request = pb.BatchAbandonUploadsRequest(names=[upload.name], request_id=str(uuid4()))

    assert await refusal(storage.stub.BatchAbandonUploads(request)) == "UPLOAD_STATE"


@pytest.mark.parametrize("settings", [{"check_interval": timedelta(seconds=0.1)}])
async def test_expired_upload_is_given_up(storage: Storage) -> None:
    request = pb.BatchCreateUploadsRequest(
        uploads=[grant_pb2.Upload()], lifetime=Duration(nanos=200_000_000), request_id=str(uuid4())
    )
    upload = (await storage.stub.BatchCreateUploads(request)).uploads[0]

    async def abandoned() -> bool:
        return (await storage.uploads(upload))[0].state == grant_pb2.Upload.STATE_ABANDONED

    await until(abandoned)
    assert not Path(upload.grant.local_path).exists()  # noqa: ASYNC240  a test may block


async def opened_for(storage: Storage, lifetime: timedelta) -> grant_pb2.Upload:
    request = pb.BatchCreateUploadsRequest(uploads=[grant_pb2.Upload()], request_id=str(uuid4()))
    request.lifetime.FromTimedelta(lifetime)
    return (await storage.stub.BatchCreateUploads(request)).uploads[0]


async def renewed(storage: Storage, lifetime: timedelta, *uploads: grant_pb2.Upload) -> list[grant_pb2.Upload]:
    request = pb.BatchRenewUploadsRequest(names=[one.name for one in uploads], request_id=str(uuid4()))
    request.lifetime.FromTimedelta(lifetime)
    return list((await storage.stub.BatchRenewUploads(request)).uploads)


@pytest.mark.parametrize("settings", [{"check_interval": timedelta(seconds=0.1)}])
async def test_renewed_upload_takes_files_where_it_did_after_its_first_end(storage: Storage) -> None:
    upload, other = [await opened_for(storage, timedelta(seconds=3)) for _ in range(2)]

    (longer,) = await renewed(storage, timedelta(hours=1), upload)

    async def given_up() -> bool:
        return (await storage.uploads(other))[0].state == grant_pb2.Upload.STATE_ABANDONED

    await until(given_up)
    assert longer.expire_time.seconds > upload.expire_time.seconds + 3000
    assert (await storage.put(upload, b"bytes"))[0] == 201
    await storage.commit(storage.wanted(upload, "/hess/file", b"bytes"))


@pytest.mark.parametrize("settings", [{"check_interval": timedelta(hours=1)}])
async def test_upload_takes_nothing_after_its_end(storage: Storage) -> None:
    upload = await opened_for(storage, timedelta(microseconds=1))

    assert (await storage.put(upload, b"late"))[0] == 401


async def test_renewal_brings_no_end_nearer_and_leaves_out_what_is_over(storage: Storage) -> None:
    opened, gone = await storage.open(), await storage.open()
    abandon = pb.BatchAbandonUploadsRequest(names=[gone.name], request_id=str(uuid4()))
    await storage.stub.BatchAbandonUploads(abandon)
    unknown = grant_pb2.Upload(name=f"uploads/{uuid4()}")

    (left,) = await renewed(storage, timedelta(seconds=1), gone, opened, unknown)

    assert (left.name, left.expire_time) == (opened.name, opened.expire_time)


async def test_sweeping_clears_only_what_is_known_to_be_final(storage: Storage) -> None:
    opened, given_up = await storage.open(), await storage.open()
    await storage.put(opened, b"bytes")
    request = pb.BatchAbandonUploadsRequest(names=[given_up.name], request_id=str(uuid4()))
    await storage.stub.BatchAbandonUploads(request)
    # As a process leaves it that dies before it clears.
    Path(given_up.grant.local_path).mkdir()  # noqa: ASYNC240  a test may block
    storage.place(given_up, b"left")
    foreign = Path(given_up.grant.local_path).with_name(str(uuid4()))
    foreign.mkdir()

    await storage.parts.uploads.sweep()

    staged = {path.name for path in foreign.parent.iterdir()}
    assert staged == {opened.name.removeprefix("uploads/"), foreign.name}
    await storage.commit(storage.wanted(opened, "/hess/file", b"bytes"))


async def test_final_uploads_are_forgotten_after_a_week(storage: Storage) -> None:
    old, new = await storage.open(), await storage.open()
    for upload in (old, new):
        await storage.put(upload, b"bytes")
        await storage.commit(storage.wanted(upload, f"/hess/{upload.name}", b"bytes"))
    uid = old.name.removeprefix("uploads/")
    async with storage.parts.database.write() as connection:
        week = datetime.now(UTC) - timedelta(days=8)
        await connection.execute(update(tables.upload).where(tables.upload.c.uid == uid).values(expire_time=week))

    await storage.parts.uploads.prune()

    assert [upload.name for upload in await storage.uploads(old, new)] == [new.name]
    assert len(storage.visible()) == 2


async def test_grant_lives_no_longer_than_the_maximum(storage: Storage) -> None:
    request = pb.BatchCreateUploadsRequest(
        uploads=[grant_pb2.Upload()], lifetime=Duration(seconds=365 * 86400), request_id=str(uuid4())
    )
    upload = (await storage.stub.BatchCreateUploads(request)).uploads[0]

    life = upload.grant.expire_time.seconds - upload.create_time.seconds

    assert abs(life - 7 * 86400) <= 1


async def test_uploads_of_others_do_not_exist(storage: Storage) -> None:
    upload = await storage.open()
    await storage.put(upload, b"bytes")
    mallory = StorageServiceStub(storage.served.channel_for("storage.create:/", subject="mallory"))

    seen = await mallory.BatchGetUploads(pb.BatchGetUploadsRequest(names=[upload.name]))
    commit = pb.BatchCommitUploadsRequest(
        files=[storage.wanted(upload, "/hess/file", b"bytes")], request_id=str(uuid4())
    )
    abandon = pb.BatchAbandonUploadsRequest(names=[upload.name], request_id=str(uuid4()))

    assert not seen.uploads
    assert await refusal(mallory.BatchCommitUploads(commit)) == "UPLOAD_NOT_FOUND"
    renew = pb.BatchRenewUploadsRequest(names=[upload.name], request_id=str(uuid4()))
    assert await refusal(mallory.BatchAbandonUploads(abandon)) == "UPLOAD_NOT_FOUND"
    assert not (await mallory.BatchRenewUploads(renew)).uploads


async def test_upload_explains_what_it_waits_for_and_why_it_is_gone(storage: Storage) -> None:
    opened = await storage.open()
    request = pb.ExplainUploadRequest(name=opened.name)

    empty = await storage.stub.ExplainUpload(request)
    await storage.put(opened, b"abc")
    arrived = await storage.stub.ExplainUpload(request)
    gone = pb.BatchAbandonUploadsRequest(names=[opened.name], request_id=str(uuid4()))
    await storage.stub.BatchAbandonUploads(gone)
    given_up = await storage.stub.ExplainUpload(request)

    assert (empty.state, empty.reason, empty.since) == ("OPEN", "NO_BYTES", opened.create_time)
    assert (arrived.reason, "(3 bytes)" in arrived.summary) == ("NOT_COMMITTED", True)
    assert arrived.next_check_time.seconds == opened.grant.expire_time.seconds
    assert (given_up.state, given_up.reason) == ("ABANDONED", "ABANDONED")
    assert given_up.summary == "It was given up; its bytes are deleted."


async def test_uploads_of_others_are_not_explained(storage: Storage) -> None:
    opened = await storage.open()
    token = storage.served.token(["storage.create:/"], subject="stranger")

    async with storage.served.channel_with(token) as channel:
        call = StorageServiceStub(channel).ExplainUpload(pb.ExplainUploadRequest(name=opened.name))
        assert await refusal(call) == "UPLOAD_NOT_FOUND"
