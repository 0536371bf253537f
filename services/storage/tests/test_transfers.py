"""Copies from StorageElement to StorageElement."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest

from khomas.api.catalog.v1 import file_pb2
from khomas.api.storage.v1 import storage_element_pb2, transfer_pb2
from khomas.api.storage.v1 import storage_service_pb2 as pb
from khomas.kit.boundary.call import current_call
from khomas.kit.boundary.status import info_of, reason_of
from khomas.kit.database import count_statements
from khomas.kit.errors import Overloaded
from khomas.storage.testing import FileExists, Storage, until
from khomas.storage.transfers.queue import Queue

Transfer = transfer_pb2.Transfer
TRANSIENT = transfer_pb2.TRANSFER_REASON_TRANSIENT
# More than a block, so that the loop turns.
BIG = b"x" * 10_000_000
FINAL = (Transfer.STATE_SUCCEEDED, Transfer.STATE_FAILED, Transfer.STATE_CANCELLED)


@pytest.fixture
def disk(tmp_path: Path) -> Callable[[Storage, str], Any]:
    """Make a further StorageElement."""

    async def make(storage: Storage, name: str, **fields: Any) -> Path:
        root = tmp_path / name
        root.mkdir()
        element = storage_element_pb2.StorageElement(
            name=f"storageElements/{name}", media=storage_element_pb2.StorageElement.MEDIA_DISK, **fields
        )
        element.access_points.add(protocol="posix", address=str(root))
        await storage.stub.CreateStorageElement(
            pb.CreateStorageElementRequest(storage_element=element, request_id=str(uuid4()))
        )
        return root

    return make


async def copy(storage: Storage, *wanted: Transfer) -> list[pb.TransferResult]:
    request = pb.BatchCreateTransfersRequest(transfers=wanted, request_id=str(uuid4()))
    return list((await storage.stub.BatchCreateTransfers(request)).results)


async def get(storage: Storage, transfer: Transfer) -> Transfer:
    return await storage.stub.GetTransfer(pb.GetTransferRequest(name=transfer.name))


async def ended(storage: Storage, transfer: Transfer) -> Transfer:
    async def final() -> bool:
        return (await get(storage, transfer)).state in FINAL

    await until(final)
    return await get(storage, transfer)


async def test_copy_is_verified_and_catalogued(storage: Storage, disk: Any) -> None:
    root = await disk(storage, "mirror")
    await storage.store("/hess/file", BIG)

    (result,) = await copy(storage, Transfer(file="/hess/file", destination="mirror"))
    transfer = await ended(storage, result.transfer)

    assert transfer.state == Transfer.STATE_SUCCEEDED, transfer
    assert (root / "hess/file").read_bytes() == BIG
    replicas = {one.storage_element: one for one in storage.catalog.files["/hess/file"].replicas}
    assert replicas["mirror"].path == "hess/file"
    assert replicas["mirror"].HasField("verify_time")
    assert [(one.source, one.bytes, one.reason) for one in transfer.attempts] == [("local", len(BIG), 0)]


@pytest.mark.parametrize("step", ["claim", "failed_sources", "renew", "settle"])
async def test_database_that_is_busy_for_a_moment_ends_no_copy(
    storage: Storage, disk: Any, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    await disk(storage, "mirror")
    await storage.store("/hess/file", BIG)
    right, calls = getattr(Queue, step), iter((True, False))

    async def busy_once(*given: Any, **options: Any) -> Any:
        if next(calls, False):
            raise Overloaded
        return await right(*given, **options)

    monkeypatch.setattr(Queue, step, busy_once)
    (result,) = await copy(storage, Transfer(file="/hess/file", destination="mirror"))
    transfer = await ended(storage, result.transfer)

    assert transfer.state == Transfer.STATE_SUCCEEDED
    assert next(calls, None) is None
    assert [one.reason for one in transfer.attempts if one.reason] == ([TRANSIENT] if step == "failed_sources" else [])


async def test_copy_that_is_there_already_has_succeeded(storage: Storage) -> None:
    await storage.store("/hess/file", b"bytes")

    (result,) = await copy(storage, Transfer(file="/hess/file", destination="local"))

    assert result.transfer.state == Transfer.STATE_SUCCEEDED


async def test_copy_wanted_twice_is_one_transfer(storage: Storage, disk: Any) -> None:
    await disk(storage, "mirror")
    await storage.store("/hess/file", b"bytes")
    wanted = Transfer(file="/hess/file", destination="mirror")

    first, second = await copy(storage, wanted, wanted)

    assert first.transfer.name == second.transfer.name


async def test_impossible_copies_are_refused_one_by_one(storage: Storage, disk: Any) -> None:
    await disk(storage, "mirror")
    await disk(storage, "museum", read_only=True)
    await storage.store("/hess/file", b"bytes")

    results = await copy(
        storage,
        Transfer(file="/hess/file", destination="miror"),
        Transfer(file="/hess/nothing", destination="mirror"),
        Transfer(file="/hess/file", destination="museum"),
        Transfer(file="/hess/file", destination="mirror"),
    )

    assert info_of(results[0].error).metadata["nearest"] == "mirror"
    assert results[1].error.code == grpc.StatusCode.NOT_FOUND.value[0]
    assert info_of(results[2].error).reason == "STORAGE_ELEMENT_READ_ONLY"
    assert results[3].transfer.name


async def test_damaged_source_becomes_suspect_and_another_one_is_read(storage: Storage, disk: Any) -> None:
    alpha = await disk(storage, "alpha")
    await disk(storage, "beta")
    await storage.store("/hess/file", b"sound")
    await ended(storage, (await copy(storage, Transfer(file="/hess/file", destination="alpha")))[0].transfer)
    (alpha / "hess/file").write_bytes(b"wrong")

    (result,) = await copy(storage, Transfer(file="/hess/file", destination="beta"))
    transfer = await ended(storage, result.transfer)

    assert transfer.state == Transfer.STATE_SUCCEEDED
    checksum = transfer_pb2.TRANSFER_REASON_SOURCE_CHECKSUM
    assert [(one.source, one.reason) for one in transfer.attempts] == [("alpha", checksum), ("local", 0)]
    states = {one.storage_element: one.state for one in storage.catalog.files["/hess/file"].replicas}
    assert states["beta"] == file_pb2.Replica.STATE_AVAILABLE
    # It may have been repaired by now.
    assert ("alpha", file_pb2.Replica.STATE_SUSPECT) in replicas_over_time(storage)


async def test_last_damaged_source_ends_the_transfer(storage: Storage, disk: Any) -> None:
    mirror = await disk(storage, "mirror")
    await storage.store("/hess/file", b"sound")
    (storage.root / "hess/file").write_bytes(b"wrong")

    (result,) = await copy(storage, Transfer(file="/hess/file", destination="mirror"))
    transfer = await ended(storage, result.transfer)
    why = await storage.stub.ExplainTransfer(pb.ExplainTransferRequest(name=transfer.name))

    assert (transfer.state, transfer.reason) == (Transfer.STATE_FAILED, transfer_pb2.TRANSFER_REASON_NO_SOURCE)
    assert not [path for path in mirror.rglob("*") if path.is_file()]
    assert (why.state, why.reason) == ("FAILED", "NO_SOURCE")
    assert "SOURCE_CHECKSUM" in why.details[0]
    assert why.remedies


async def test_missing_source_is_tried_again_until_it_is_given_up(storage: Storage, disk: Any) -> None:
    await disk(storage, "mirror")
    await storage.store("/hess/file", b"bytes")
    (storage.root / "hess/file").unlink()

    (result,) = await copy(storage, Transfer(file="/hess/file", destination="mirror", max_attempts=2))
    transfer = await ended(storage, result.transfer)

    assert (transfer.state, transfer.reason) == (Transfer.STATE_FAILED, transfer_pb2.TRANSFER_REASON_SOURCE)
    assert len(transfer.attempts) == 2


async def test_unreachable_destination_is_waited_for(storage: Storage, disk: Any) -> None:
    mirror = await disk(storage, "mirror")
    await storage.store("/hess/file", b"bytes")
    mirror.rename(mirror.with_name("gone"))
    (result,) = await copy(storage, Transfer(file="/hess/file", destination="mirror", max_attempts=100))

    async def waits() -> bool:
        return (await get(storage, result.transfer)).reason == transfer_pb2.TRANSFER_REASON_BACKOFF

    await until(waits)
    mirror.with_name("gone").rename(mirror)
    transfer = await ended(storage, result.transfer)

    assert transfer.state == Transfer.STATE_SUCCEEDED
    assert transfer.attempts[0].reason == transfer_pb2.TRANSFER_REASON_DESTINATION


async def test_capacity_of_the_destination_is_kept(storage: Storage, disk: Any) -> None:
    mirror = await disk(storage, "mirror", capacity_bytes=4)
    await storage.store("/hess/file", b"bytes")

    (result,) = await copy(storage, Transfer(file="/hess/file", destination="mirror", max_attempts=1))
    transfer = await ended(storage, result.transfer)
    why = await storage.stub.ExplainTransfer(pb.ExplainTransferRequest(name=transfer.name))

    assert (transfer.state, transfer.reason) == (Transfer.STATE_FAILED, transfer_pb2.TRANSFER_REASON_SPACE)
    assert not list(mirror.iterdir())
    assert why.remedies[0].action == "Make room on mirror, or raise its capacity."


async def test_copy_that_the_catalogue_refuses_is_removed(storage: Storage, disk: Any) -> None:
    mirror = await disk(storage, "mirror")
    await storage.store("/hess/file", b"bytes")
    storage.catalog.before = refuse_replicas

    (result,) = await copy(storage, Transfer(file="/hess/file", destination="mirror", max_attempts=1))
    transfer = await ended(storage, result.transfer)

    assert transfer.state == Transfer.STATE_FAILED
    assert "refused" in transfer.message
    assert not [path for path in mirror.rglob("*") if path.is_file()]


@pytest.mark.parametrize("settings", [{"fsync": True}])
async def test_copy_that_is_flushed_to_the_disk_works_alike(storage: Storage, disk: Any) -> None:
    mirror = await disk(storage, "mirror")
    await storage.store("/hess/file", b"bytes")

    (result,) = await copy(storage, Transfer(file="/hess/file", destination="mirror"))
    await ended(storage, result.transfer)

    assert (mirror / "hess/file").read_bytes() == b"bytes"


async def test_taken_path_at_the_destination_is_left_alone(storage: Storage, disk: Any) -> None:
    mirror = await disk(storage, "mirror")
    (mirror / "hess").mkdir()
    (mirror / "hess/file").write_bytes(b"somebody's")
    await storage.store("/hess/file", b"ours")

    (result,) = await copy(storage, Transfer(file="/hess/file", destination="mirror"))
    await ended(storage, result.transfer)

    path = storage.catalog.files["/hess/file"].replicas[1].path
    assert (mirror / path).read_bytes() == b"ours"
    assert (mirror / "hess/file").read_bytes() == b"somebody's"


async def test_copy_that_could_not_be_announced_is_found_again(storage: Storage, disk: Any) -> None:
    mirror = await disk(storage, "mirror")
    await storage.store("/hess/file", b"bytes")
    silent = [True]
    storage.catalog.before = lambda method: down(method, silent)
    (result,) = await copy(storage, Transfer(file="/hess/file", destination="mirror", max_attempts=100))

    async def failed() -> bool:
        return len((await get(storage, result.transfer)).attempts) > 0

    await until(failed)
    silent.clear()
    transfer = await ended(storage, result.transfer)

    assert transfer.state == Transfer.STATE_SUCCEEDED
    assert [path.name for path in mirror.rglob("*") if path.is_file()] == ["file"]


async def test_cancelled_transfer_stays_cancelled(storage: Storage, disk: Any) -> None:
    mirror = await disk(storage, "mirror")
    await storage.store("/hess/file", b"bytes")
    mirror.rename(mirror.with_name("gone"))
    (result,) = await copy(storage, Transfer(file="/hess/file", destination="mirror", max_attempts=100))
    request = pb.BatchCancelTransfersRequest(names=[result.transfer.name], request_id=str(uuid4()))

    answer = await storage.stub.BatchCancelTransfers(request)
    again = await storage.stub.BatchCancelTransfers(
        pb.BatchCancelTransfersRequest(names=[result.transfer.name], request_id=str(uuid4()))
    )
    mirror.with_name("gone").rename(mirror)
    await asyncio.sleep(0.3)

    assert (answer.cancelled, answer.already_final) == (1, 0)
    assert (again.cancelled, again.already_final) == (0, 1)
    assert (await get(storage, result.transfer)).state == Transfer.STATE_CANCELLED


async def test_list_filters_and_orders(storage: Storage, disk: Any) -> None:
    await disk(storage, "mirror")
    for name in ("/hess/a", "/hess/b"):
        await storage.store(name, b"bytes")
    results = await copy(storage, *[Transfer(file=name, destination="mirror") for name in ("/hess/a", "/hess/b")])
    for result in results:
        await ended(storage, result.transfer)

    of_files = await storage.stub.ListTransfers(pb.ListTransfersRequest(files=["/hess/b", "/hess/none"]))
    assert {one.file for one in of_files.transfers} == {"/hess/b"}
    found = await storage.stub.ListTransfers(
        pb.ListTransfersRequest(filter='state = SUCCEEDED AND file = "/hess/b"', order_by="create_time desc")
    )

    assert [one.file for one in found.transfers] == ["/hess/b"]


async def test_unknown_transfer_is_not_found(storage: Storage) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await storage.stub.GetTransfer(pb.GetTransferRequest(name="transfers/none"))

    assert reason_of(caught.value) == "TRANSFER_NOT_FOUND"


async def test_transfers_are_watched_until_all_are_final(storage: Storage, disk: Any) -> None:
    await disk(storage, "mirror")
    names = [f"/hess/{number}" for number in range(5)]
    for name in names:
        await storage.store(name, BIG)
    made = await copy(storage, *(Transfer(file=name, destination="mirror") for name in names))

    request = pb.WatchTransfersRequest(names=[one.transfer.name for one in made])
    answers = [answer async for answer in storage.stub.WatchTransfers(request)]

    assert {one.name for one in answers[0].transfers} == set(request.names)
    last = {one.name: one for answer in answers for one in answer.transfers}
    assert {one.state for one in last.values()} == {Transfer.STATE_SUCCEEDED}
    # Only what has changed is told again.
    told = [(one.name, one.state, one.moved_bytes, one.message) for answer in answers for one in answer.transfers]
    assert len(told) == len(set(told))


async def test_unknown_transfer_cannot_be_watched(storage: Storage) -> None:
    request = pb.WatchTransfersRequest(names=[f"transfers/{uuid4()}"])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [answer async for answer in storage.stub.WatchTransfers(request)]
    assert reason_of(caught.value) == "TRANSFER_NOT_FOUND"


@pytest.mark.parametrize("destination", ["local", "mirror"])
async def test_thousand_transfers_cost_six_statements(storage: Storage, disk: Any, destination: str) -> None:
    await disk(storage, "mirror")
    upload = await storage.open(max_files=1000)
    for index in range(1000):
        storage.place(upload, b"x", index)
    await storage.commit(*[storage.wanted(upload, f"/hess/{index}", b"x", index) for index in range(1000)])

    # They are read again now and then.
    await storage.parts.elements.all()
    with count_statements(storage.parts.database, current_call) as statements:
        await copy(storage, *[Transfer(file=f"/hess/{index}", destination=destination) for index in range(1000)])

    assert 0 < len(statements) <= 6, statements


def replicas_over_time(storage: Storage) -> set[tuple[str, int]]:
    """Return the states in which the catalogue has ever told replicas to be."""
    found = set()
    for event in storage.catalog.events:
        file = file_pb2.File()
        event.resource.Unpack(file)
        found |= {(one.storage_element, int(one.state)) for one in file.replicas}
    return found


def down(method: str, silent: list[bool]) -> None:
    if silent and method == "BatchUpdateReplicas":
        raise OSError(os.strerror(5))


def refuse_replicas(method: str) -> None:
    if method == "BatchUpdateReplicas":
        raise FileExists(name="/hess/file")
