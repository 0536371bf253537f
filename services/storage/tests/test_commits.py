"""Uploads become files: completely, or not at all."""

import asyncio
import errno
import gzip
import hashlib
import shutil
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest

from khomas.api.storage.v1 import grant_pb2
from khomas.api.storage.v1 import storage_service_pb2 as pb
from khomas.api.storage.v1.storage_service_pb2_grpc import StorageServiceStub
from khomas.kit.boundary.call import current_call
from khomas.kit.boundary.status import info_of, reason_of, received_status
from khomas.kit.database import count_statements
from khomas.kit.errors import UpstreamUnavailable
from khomas.storage import paths
from khomas.storage.testing import FileExists, Storage, own, until
from khomas.storage.uploads.intents import Intent
from khomas.storage.uploads.placing import Placing


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), reason_of(caught.value)


async def test_uploaded_file_is_catalogued(storage: Storage) -> None:
    upload = await storage.open(origin="0190")
    status, answer = await storage.put(upload, b"photons")

    committed = (await storage.commit(storage.wanted(upload, "/hess/raw/run.fits", b"photons"))).files[0]

    assert status == 201
    assert committed.path == "hess/raw/run.fits"
    assert committed.checksums.sha256 == hashlib.sha256(b"photons").hexdigest()
    file = storage.catalog.files["/hess/raw/run.fits"]
    assert (file.checksums.adler32, file.origin, file.uid) == (answer["adler32"], "0190", committed.uid)
    assert (await storage.uploads(upload))[0].state == grant_pb2.Upload.STATE_COMMITTED
    assert storage.visible() == ["hess/raw/run.fits"]


async def test_commit_is_answered_though_its_staging_folder_cannot_be_removed_yet(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = await storage.open()
    await storage.put(upload, b"photons")

    def busy(folder: Path) -> None:
        raise OSError(errno.ENOTEMPTY, "somebody still reads there", folder)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", busy)
        await storage.commit(storage.wanted(upload, "/hess/file", b"photons"))
    assert Path(upload.grant.local_path).exists()  # noqa: ASYNC240  a test may block

    await storage.parts.uploads.sweep()

    assert not Path(upload.grant.local_path).exists()  # noqa: ASYNC240  a test may block
    assert storage.visible() == ["hess/file"]


async def test_file_placed_on_the_disk_is_summed_and_catalogued(storage: Storage) -> None:
    upload = await storage.open()
    storage.place(upload, b"placed")

    committed = (await storage.commit(storage.wanted(upload, "/hess/placed", b"placed"))).files[0]

    assert committed.checksums.sha256 == hashlib.sha256(b"placed").hexdigest()
    assert (storage.root / "hess/placed").read_bytes() == b"placed"


async def test_file_changed_after_its_put_is_summed_again(storage: Storage) -> None:
    upload = await storage.open()
    await storage.put(upload, b"through the door")
    storage.place(upload, b"over it")

    committed = (await storage.commit(storage.wanted(upload, "/hess/file", b"over it"))).files[0]

    assert committed.size_bytes == 7


async def test_linked_file_is_not_committed(storage: Storage) -> None:
    upload = await storage.open()
    Path(upload.grant.local_path, "0").symlink_to("/etc/passwd")  # noqa: ASYNC240  a test may block
    wanted = pb.UploadCommit(upload=upload.name, name="/hess/passwd", size_bytes=-1)

    assert await refusal(storage.commit(wanted)) == (grpc.StatusCode.INVALID_ARGUMENT, "PATH_REFUSED")


async def test_hard_linked_file_is_not_committed(storage: Storage, tmp_path: Path) -> None:
    upload = await storage.open()
    (tmp_path / "mine").write_bytes(b"bytes")
    Path(upload.grant.local_path, "0").hardlink_to(tmp_path / "mine")  # noqa: ASYNC240  a test may block

    call = storage.commit(storage.wanted(upload, "/hess/file", b"bytes"))

    assert await refusal(call) == (grpc.StatusCode.FAILED_PRECONDITION, "UPLOAD_INCOMPLETE")


@pytest.mark.parametrize("settings", [{"fsync": True}])
async def test_commit_that_is_flushed_to_the_disk_works_alike(storage: Storage) -> None:
    await storage.store("/hess/deep/er/file", b"bytes")

    assert storage.visible() == ["hess/deep/er/file"]


@pytest.mark.parametrize(
    "announced",
    [
        {"size_bytes": 6},
        {"size_bytes": 5, "checksums": {"adler32": "00000001"}},
        {"size_bytes": 5, "checksums": {"sha256": "0" * 64}},
        {"size_bytes": 5, "checksums": {"md5": "0" * 32}},
    ],
)
async def test_announced_must_be_what_arrived(storage: Storage, announced: dict[str, Any]) -> None:
    upload = await storage.open()
    await storage.put(upload, b"bytes")
    wanted = pb.UploadCommit(upload=upload.name, name="/hess/file", **announced)

    assert await refusal(storage.commit(wanted)) == (grpc.StatusCode.DATA_LOSS, "CHECKSUM_MISMATCH")
    assert storage.visible() == []
    assert (await storage.uploads(upload))[0].state == grant_pb2.Upload.STATE_OPEN


async def test_missing_file_refuses_the_whole_commit(storage: Storage) -> None:
    upload = await storage.open(max_files=2)
    await storage.put(upload, b"only one")
    both = [storage.wanted(upload, f"/hess/{index}", b"only one", index) for index in (0, 1)]

    assert await refusal(storage.commit(*both)) == (grpc.StatusCode.FAILED_PRECONDITION, "UPLOAD_INCOMPLETE")
    assert storage.catalog.files == {}


async def test_refusal_of_the_catalogue_is_passed_on_and_nothing_stays(storage: Storage) -> None:
    await storage.store("/hess/file", b"old")
    upload = await storage.open()
    await storage.put(upload, b"new")

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await storage.commit(storage.wanted(upload, "/hess/file", b"new"))

    info = info_of(received_status(caught.value))
    assert (info.domain, info.reason) == ("khomas.catalog", "FILE_EXISTS")
    assert storage.visible() == ["hess/file"]
    assert (storage.root / "hess/file").read_bytes() == b"old"
    await storage.commit(storage.wanted(upload, "/hess/other", b"new"))
    assert storage.visible() == ["hess/file", "hess/other"]


async def test_taken_path_is_never_overwritten(storage: Storage) -> None:
    (storage.root / "hess").mkdir()
    (storage.root / "hess/file").write_bytes(b"somebody's")

    committed = await storage.store("/hess/file", b"ours")

    assert committed.path.startswith("hess/file~")
    assert (storage.root / committed.path).read_bytes() == b"ours"
    assert (storage.root / "hess/file").read_bytes() == b"somebody's"


async def test_file_where_a_folder_is_wanted_is_left_alone(storage: Storage) -> None:
    (storage.root / "hess").write_bytes(b"a file")

    committed = await storage.store("/hess/file", b"ours")

    assert (storage.root / committed.path).read_bytes() == b"ours"
    assert (storage.root / "hess").read_bytes() == b"a file"


async def test_repeated_commit_gives_the_first_answer(storage: Storage) -> None:
    upload = await storage.open()
    await storage.put(upload, b"bytes")
    request_id, wanted = str(uuid4()), storage.wanted(upload, "/hess/file", b"bytes")

    first = await storage.commit(wanted, request_id=request_id)
    again = await storage.commit(wanted, request_id=request_id)

    assert first == again
    assert storage.catalog.calls == ["BatchCreateFiles"]


async def test_same_commit_twice_at_once_is_done_once(storage: Storage) -> None:
    upload = await storage.open()
    await storage.put(upload, b"bytes")
    request_id, wanted = str(uuid4()), storage.wanted(upload, "/hess/file", b"bytes")

    answers = await asyncio.gather(*[storage.commit(wanted, request_id=request_id) for _ in range(5)])

    assert all(answer == answers[0] for answer in answers)
    assert storage.catalog.calls == ["BatchCreateFiles"]


async def test_request_id_of_somebody_else_spoils_nothing(storage: Storage) -> None:
    request_id, mallory = str(uuid4()), StorageServiceStub(storage.served.channel_for("storage.create:/", subject="m"))
    request = pb.BatchCreateUploadsRequest(uploads=[grant_pb2.Upload()], request_id=request_id)
    theirs = (await mallory.BatchCreateUploads(request)).uploads[0]
    await storage.put(theirs, b"theirs")
    files = [storage.wanted(theirs, "/hess/theirs", b"theirs")]
    await mallory.BatchCommitUploads(pb.BatchCommitUploadsRequest(files=files, request_id=request_id))
    upload = await storage.open()
    await storage.put(upload, b"ours")

    await storage.commit(storage.wanted(upload, "/hess/ours", b"ours"), request_id=request_id)

    assert storage.visible() == ["hess/ours", "hess/theirs"]


async def test_request_id_of_another_commit_is_refused(storage: Storage) -> None:
    one, other = await storage.open(), await storage.open()
    for upload in (one, other):
        await storage.put(upload, b"bytes")
    request_id = str(uuid4())
    await storage.commit(storage.wanted(one, "/hess/one", b"bytes"), request_id=request_id)

    call = storage.commit(storage.wanted(other, "/hess/other", b"bytes"), request_id=request_id)

    assert await refusal(call) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")


async def test_second_commit_of_an_upload_is_refused(storage: Storage) -> None:
    upload = await storage.open()
    await storage.put(upload, b"bytes")
    await storage.commit(storage.wanted(upload, "/hess/one", b"bytes"))

    call = storage.commit(storage.wanted(upload, "/hess/two", b"bytes"))

    assert await refusal(call) == (grpc.StatusCode.FAILED_PRECONDITION, "UPLOAD_STATE")


async def test_file_catalogued_before_keeps_its_replica_and_ours_goes(storage: Storage) -> None:
    first = await storage.store("/hess/file", b"same")

    again = await storage.store("/hess/file", b"same")

    assert (again.uid, again.path) == (first.uid, "hess/file")
    assert storage.visible() == ["hess/file"]


async def test_lost_answer_of_the_catalogue_is_found_out_by_asking_again(storage: Storage) -> None:
    upload = await storage.open()
    await storage.put(upload, b"bytes")
    request_id, wanted = str(uuid4()), storage.wanted(upload, "/hess/file", b"bytes")
    storage.catalog.after = unreachable

    assert await refusal(storage.commit(wanted, request_id=request_id)) == (
        grpc.StatusCode.UNAVAILABLE,
        "UPSTREAM_UNAVAILABLE",
    )
    storage.catalog.after = fine
    committed = (await storage.commit(wanted, request_id=request_id)).files[0]

    assert committed.uid == storage.catalog.files["/hess/file"].uid
    assert storage.visible() == ["hess/file"]


async def test_commit_left_by_a_silent_catalogue_is_finished_without_the_caller(storage: Storage) -> None:
    upload = await storage.open()
    await storage.put(upload, b"bytes")
    storage.catalog.before = unreachable
    await refusal(storage.commit(storage.wanted(upload, "/hess/file", b"bytes")))

    storage.catalog.before = fine

    async def committed() -> bool:
        return (await storage.uploads(upload))[0].state == grant_pb2.Upload.STATE_COMMITTED

    await until(committed)

    assert storage.visible() == ["hess/file"]


async def test_commit_that_was_left_and_then_refused_is_taken_back(storage: Storage) -> None:
    upload = await storage.open()
    await storage.put(upload, b"bytes")
    storage.catalog.before = unreachable
    await refusal(storage.commit(storage.wanted(upload, "/hess/file", b"bytes")))

    storage.catalog.before = exists

    async def taken_back() -> bool:
        return not storage.visible()

    await until(taken_back)
    storage.catalog.before = fine

    async def committed() -> bool:
        try:
            await storage.commit(storage.wanted(upload, "/hess/file", b"bytes"))
        except grpc.aio.AioRpcError as error:
            # The bytes are back before the upload is open again.
            if reason_of(error) != "UPLOAD_STATE":
                raise
            return False
        return True

    await until(committed)
    assert storage.visible() == ["hess/file"]


@pytest.fixture
def trouble(monkeypatch: pytest.MonkeyPatch) -> dict[str, Exception]:
    """Give what placing the files of a folder raises, by the folder."""
    by_folder: dict[str, Exception] = {}
    place = Placing.place

    async def troubled(placing: Placing, intent: Intent, elements: Any, *, again: bool) -> None:
        if error := by_folder.get(intent.placements[0].path.partition("/")[0]):
            raise error
        await place(placing, intent, elements, again=again)

    monkeypatch.setattr(Placing, "place", troubled)
    return by_folder


async def left(storage: Storage, name: str) -> grant_pb2.Upload:
    """Begin a commit that the catalogue does not answer."""
    upload = await storage.open()
    await storage.put(upload, b"bytes")
    storage.catalog.before = unreachable
    await refusal(storage.commit(storage.wanted(upload, name, b"bytes")))
    return upload


async def test_commits_that_wait_for_a_storage_hold_up_no_others(
    storage: Storage, trouble: dict[str, Exception]
) -> None:
    trouble["away"] = UpstreamUnavailable("It does not answer.", service="away")
    for number in range(10):
        await left(storage, f"/away/{number}")
    upload = await left(storage, "/here/file")

    storage.catalog.before = fine

    async def committed() -> bool:
        return (await storage.uploads(upload))[0].state == grant_pb2.Upload.STATE_COMMITTED

    await until(committed, 20)


async def test_commit_that_fails_strangely_ends_no_loop(
    storage: Storage, trouble: dict[str, Exception], caplog: pytest.LogCaptureFixture
) -> None:
    upload = await left(storage, "/strange/file")
    trouble["strange"] = RuntimeError("strange")

    async def failed() -> bool:
        return not {"commit.failed", "loop.failed"}.isdisjoint(caplog.messages)

    await until(failed)

    assert "loop.failed" not in caplog.messages
    assert (await storage.uploads(upload))[0].state == grant_pb2.Upload.STATE_OPEN


async def test_datasets_of_all_files_are_joined_in_the_commit_and_others_after_it(storage: Storage) -> None:
    upload = await storage.open(max_files=2)
    for index in (0, 1):
        await storage.put(upload, b"bytes", index)

    await storage.commit(
        storage.wanted(upload, "/hess/a", b"bytes", 0, datasets=["datasets/all", "datasets/a"]),
        storage.wanted(upload, "/hess/b", b"bytes", 1, datasets=["datasets/all"]),
    )

    assert storage.catalog.datasets == {"datasets/all": {"/hess/a", "/hess/b"}, "datasets/a": {"/hess/a"}}


async def test_fits_gets_a_content_digest_and_a_given_one_is_kept(storage: Storage, fits_file: bytes) -> None:
    plain = await storage.store("/hess/a.fits", fits_file)
    zipped = await storage.store("/hess/a.fits.gz", gzip.compress(fits_file))
    upload = await storage.open()
    await storage.put(upload, fits_file)
    wanted = storage.wanted(upload, "/hess/b.fits", fits_file)
    wanted.checksums.content_digest = "f" * 64
    given = (await storage.commit(wanted)).files[0]

    assert plain.checksums.content_digest == zipped.checksums.content_digest != ""
    assert given.checksums.content_digest == "f" * 64


@pytest.mark.parametrize("name", ["/hess/../etc/passwd", "/hess/./x", "/.khomas/uploads/x", "/hess/%2e%2e/x"])
async def test_odd_names_are_refused(storage: Storage, name: str) -> None:
    upload = await storage.open()
    await storage.put(upload, b"bytes")

    code, reason = await refusal(storage.commit(storage.wanted(upload, name, b"bytes")))

    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert reason in {"PATH_REFUSED", "FIELD_INVALID"}


@pytest.mark.parametrize("part", ["a" * 256, "ö" * 128])
async def test_name_with_a_part_that_no_file_system_takes_is_refused_and_the_upload_stays_open(
    storage: Storage, part: str
) -> None:
    upload = await storage.open()
    await storage.put(upload, b"bytes")

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await storage.commit(storage.wanted(upload, f"/hess/{part}/file", b"bytes"))

    assert (caught.value.code(), reason_of(caught.value)) == (grpc.StatusCode.INVALID_ARGUMENT, "PATH_REFUSED")
    assert part in (caught.value.details() or "")
    await storage.commit(storage.wanted(upload, "/hess/file", b"bytes"))


@pytest.mark.parametrize("part", ["a" * 255, "ö" * 127])
async def test_longest_name_is_shortened_where_it_is_taken(storage: Storage, part: str) -> None:
    (storage.root / "hess").mkdir()
    (storage.root / "hess" / part).write_bytes(b"somebody's")

    committed = await storage.store(f"/hess/{part}", b"ours")

    assert committed.path.startswith(f"hess/{part[:100]}")
    assert (storage.root / committed.path).read_bytes() == b"ours"
    assert (storage.root / "hess" / part).read_bytes() == b"somebody's"


async def test_name_that_is_too_long_for_this_disk_is_refused_and_the_upload_stays_open(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As an encrypted file system, which takes less than others.
    monkeypatch.setattr(paths, "_MAX_PART_BYTES", 300)
    upload = await storage.open()
    await storage.put(upload, b"bytes")

    call = storage.commit(storage.wanted(upload, "/hess/" + "a" * 256, b"bytes"))

    assert await refusal(call) == (grpc.StatusCode.INVALID_ARGUMENT, "PATH_REFUSED")
    await storage.commit(storage.wanted(upload, "/hess/file", b"bytes"))


async def test_thousand_files_cost_six_statements(storage: Storage) -> None:
    upload = await storage.open(max_files=1000)
    for index in range(1000):
        storage.place(upload, b"x", index)

    with count_statements(storage.parts.database, current_call) as statements:
        await storage.commit(*[storage.wanted(upload, f"/hess/{index}", b"x", index) for index in range(1000)])

    assert 0 < len(own(statements)) <= 6, statements


def unreachable(_: str) -> None:
    """Answer like a service that is going down."""
    raise Down


def exists(_: str) -> None:
    raise FileExists(name="/hess/file")


def fine(_: str) -> None:
    return


class Down(FileExists):
    code = grpc.StatusCode.UNAVAILABLE
    reason = "UPSTREAM_UNAVAILABLE"
    area = ""
    template = "down"
