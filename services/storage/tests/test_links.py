"""Links as callers see and bound them, and the choice of a source by what they have carried."""

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import grpc
import pytest
from sqlalchemy import update

from khomas.api.catalog.v1 import file_pb2
from khomas.api.storage.v1 import link_pb2, storage_element_pb2, transfer_pb2
from khomas.api.storage.v1 import link_service_pb2 as links_pb
from khomas.api.storage.v1 import storage_service_pb2 as pb
from khomas.api.storage.v1.link_service_pb2_grpc import LinkServiceStub
from khomas.kit.boundary.status import reason_of
from khomas.storage import tables
from khomas.storage.elements.elements import Element
from khomas.storage.links import bucket
from khomas.storage.links.choosing import nearest
from khomas.storage.links.measures import Measure, Measures, Streams
from khomas.storage.links.rates import Rates
from khomas.storage.testing import Storage, until

Transfer = transfer_pb2.Transfer
FINAL = (Transfer.STATE_SUCCEEDED, Transfer.STATE_FAILED, Transfer.STATE_CANCELLED)
MIB = 1024 * 1024
Disk = Callable[..., Awaitable[Path]]


@pytest.fixture
def disk(storage: Storage, tmp_path: Path) -> Disk:
    """Make a further StorageElement."""

    async def make(name: str, **fields: Any) -> Path:
        root = tmp_path / name
        root.mkdir()
        element = storage_element_pb2.StorageElement(
            name=f"storageElements/{name}", media=storage_element_pb2.StorageElement.MEDIA_DISK, **fields
        )
        element.access_points.add(protocol="posix", address=str(root))
        request = pb.CreateStorageElementRequest(storage_element=element, request_id=str(uuid4()))
        await storage.stub.CreateStorageElement(request)
        return root

    return make


def links(storage: Storage) -> LinkServiceStub:
    return LinkServiceStub(storage.served.channel)


async def moved(storage: Storage, *wanted: Transfer) -> list[Transfer]:
    """Want copies and wait for their ends."""
    request = pb.BatchCreateTransfersRequest(transfers=wanted, request_id=str(uuid4()))
    names = [one.transfer.name for one in (await storage.stub.BatchCreateTransfers(request)).results]

    async def read() -> list[Transfer]:
        return [await storage.stub.GetTransfer(pb.GetTransferRequest(name=name)) for name in names]

    async def over() -> bool:
        return all(one.state in FINAL for one in await read())

    await until(over, 60)
    return await read()


async def limit(storage: Storage, **fields: Any) -> link_pb2.LinkLimit:
    request = links_pb.SetLinkLimitRequest(limit=link_pb2.LinkLimit(**fields), request_id=str(uuid4()))
    return await links(storage).SetLinkLimit(request)


async def test_bound_that_is_asked_for_again_late_does_not_undo_a_newer_one(storage: Storage) -> None:
    first = links_pb.SetLinkLimitRequest(limit=link_pb2.LinkLimit(max_streams=1), request_id=str(uuid4()))
    await links(storage).SetLinkLimit(first)
    await limit(storage, max_streams=2)

    assert (await links(storage).SetLinkLimit(first)).max_streams == 1

    (bound,) = (await links(storage).ListLinks(links_pb.ListLinksRequest())).limits
    assert bound.max_streams == 2


async def test_link_tells_what_it_has_carried(storage: Storage, disk: Disk) -> None:
    await disk("mirror")
    await storage.store("/hess/file", b"x" * MIB)
    await moved(storage, Transfer(file="/hess/file", destination="mirror"))

    (link,) = (await links(storage).ListLinks(links_pb.ListLinksRequest(source="local"))).links
    nothing = await links(storage).ListLinks(links_pb.ListLinksRequest(source="mirror"))

    assert (link.source, link.destination, link.files, link.bytes, link.errors) == ("local", "mirror", 1, MIB, 0)
    assert link.success == 1
    assert link.stream_rate > 0
    assert link.HasField("arrive_time")
    assert not nothing.links


async def test_link_tells_its_last_error(storage: Storage, disk: Disk) -> None:
    mirror = await disk("mirror")
    await storage.store("/hess/file", b"bytes")
    mirror.rename(mirror.with_name("gone"))
    await moved(storage, Transfer(file="/hess/file", destination="mirror", max_attempts=2))

    (link,) = (await links(storage).ListLinks(links_pb.ListLinksRequest())).links

    assert (link.files, link.errors, link.success) == (0, 2, 0)
    assert "mirror" in link.message
    assert link.HasField("error_time")


async def test_bound_is_kept_changed_and_removed(storage: Storage, disk: Disk) -> None:
    await disk("mirror")
    await limit(storage, destination="mirror", max_streams=3)
    await limit(storage, destination="mirror", max_streams=1, max_rate=10**9)
    kept = (await links(storage).ListLinks(links_pb.ListLinksRequest())).limits

    await limit(storage, destination="mirror")
    left = (await links(storage).ListLinks(links_pb.ListLinksRequest())).limits

    assert [(one.source, one.destination, one.max_streams, one.max_rate) for one in kept] == [("", "mirror", 1, 10**9)]
    assert not left


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"source": "nowhere", "max_streams": 1}, "STORAGE_ELEMENT_NOT_FOUND"),
        ({"max_streams": -1}, "FIELD_INVALID"),
    ],
)
async def test_wrong_bound_is_refused(storage: Storage, fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await limit(storage, **fields)

    assert reason_of(caught.value) == reason


async def test_bounded_rate_is_what_holds_a_transfer_up(storage: Storage, disk: Disk) -> None:
    await disk("mirror")
    await limit(storage, source="local", destination="mirror", max_rate=2 * MIB)
    await storage.store("/hess/file", os.urandom(8 * MIB))

    (transfer,) = await moved(storage, Transfer(file="/hess/file", destination="mirror"))

    (attempt,) = transfer.attempts
    assert transfer.state == Transfer.STATE_SUCCEEDED
    assert attempt.elapsed.ToSeconds() >= 3


async def test_bounded_rate_is_divided_among_the_processes_that_move_on_these_links(
    storage: Storage, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def at_once(seconds: float) -> None:
        """Nobody waits: what is looked at is for how long they would."""

    monkeypatch.setattr(bucket, "asyncio", SimpleNamespace(sleep=at_once))
    for name in ("mirror", "other"):
        await disk(name)
        await storage.store(f"/hess/{name}", b"bytes")
    await moved(storage, *[Transfer(file=f"/hess/{name}", destination=name) for name in ("mirror", "other")])
    await limit(storage, destination="mirror", max_rate=6 * MIB)
    parts = storage.parts

    async def pause_after(size_bytes: int) -> float:
        rates = Rates(parts.database, Measures(parts.database, Streams(2, 8)), "this process")
        await rates.refresh(await parts.elements.all())
        throttle = rates.throttle("local", "mirror")
        await throttle(size_bytes)
        return throttle.seconds

    alone = await pause_after(6000 * MIB)
    row = tables.transfer.c
    async with parts.database.write() as connection:
        for name in ("mirror", "other"):
            running = {"state": Transfer.STATE_RUNNING, "lease_owner": f"a process that moves to {name}"}
            await connection.execute(update(tables.transfer).where(row.destination == name).values(running))
    together = await pause_after(3000 * MIB)

    # Half of the bytes take as long: the process on the same link has its half too, the other one has none of it.
    assert alone == pytest.approx(1000, rel=0.01)
    assert together == pytest.approx(1000, rel=0.01)


async def test_attempt_tells_by_whom_and_how_it_went(storage: Storage, disk: Disk) -> None:
    await disk("mirror")
    await storage.store("/hess/file", b"bytes")

    (transfer,) = await moved(storage, Transfer(file="/hess/file", destination="mirror"))

    (attempt,) = transfer.attempts
    assert (attempt.executor, attempt.streamed_bytes, attempt.bytes) == ("mover", 5, 5)
    assert attempt.bottleneck != transfer_pb2.BOTTLENECK_UNSPECIFIED
    assert (transfer.source, transfer.share) == ("local", transfer.owner)


async def test_deadline_and_share_are_those_that_were_asked_for(storage: Storage, disk: Disk) -> None:
    await disk("mirror")
    await storage.store("/hess/file", b"bytes")
    wanted = Transfer(file="/hess/file", destination="mirror", share="mc")
    wanted.deadline.FromDatetime(datetime.now(UTC) - timedelta(hours=1))

    (transfer,) = await moved(storage, wanted)

    assert transfer.deadline == wanted.deadline
    assert transfer.share == "mc"
    assert (transfer.state, transfer.reason) == (Transfer.STATE_FAILED, transfer_pb2.TRANSFER_REASON_DEADLINE)


@pytest.mark.parametrize("settings", [{"transfer_retention": timedelta(0)}])
async def test_transfers_that_ended_long_ago_are_forgotten(storage: Storage, disk: Disk) -> None:
    await disk("mirror")
    await storage.store("/hess/file", b"bytes")
    await moved(storage, Transfer(file="/hess/file", destination="mirror"))

    await storage.parts.transfers.prune()

    assert not (await storage.stub.ListTransfers(pb.ListTransfersRequest())).transfers


async def test_many_small_files_arrive_by_few_streams(storage: Storage, disk: Disk) -> None:
    root = await disk("mirror")
    names = [f"/hess/{number}" for number in range(50)]
    for name in names:
        await storage.store(name, name.encode())
    (root / "hess").mkdir()
    (root / "hess/7").write_bytes(b"somebody's")
    (storage.root / "hess/9").write_bytes(b"wrong")

    found = await moved(storage, *[Transfer(file=name, destination="mirror") for name in names])

    states = {one.file: one.state for one in found}
    assert {name for name, state in states.items() if state != Transfer.STATE_SUCCEEDED} == {"/hess/9"}
    paths = {
        name: replica.path
        for name, file in storage.catalog.files.items()
        for replica in file.replicas
        if replica.storage_element == "mirror"
    }
    assert len(paths) == 49
    assert all((root / path).read_bytes() == name.encode() for name, path in paths.items())
    assert (root / "hess/7").read_bytes() == b"somebody's"
    assert not list((root / ".khomas/incoming").iterdir())


@dataclass(frozen=True, slots=True)
class Around:
    """Makes StorageElements like one that there is, and asks in which order their copies are read."""

    pattern: Element

    def element(self, name: str, site: str = "", **fields: Any) -> Element:
        return replace(self.pattern, id=name, site=site, **fields)

    def order(self, measures: dict[tuple[str, str], Measure], *elements: Element, **reader: str) -> list[str]:
        file = file_pb2.File()
        for one in elements:
            file.replicas.add(storage_element=one.id, state=file_pb2.Replica.STATE_AVAILABLE)
        known = {one.id: one for one in (*elements, self.element("target", "south"))}
        return [found.id for found, _ in nearest(file, known, measures, **reader)]


@pytest.fixture
async def around(storage: Storage) -> Around:
    return Around((await storage.parts.elements.all())["local"])


def carried(rate: float, errors: int = 0) -> Measure:
    return Measure(bytes=int(rate * 100), files=100, errors=errors, stream_seconds=100.0, busy_seconds=100.0)


def test_copy_at_the_same_site_is_nearest_while_nothing_is_known(around: Around) -> None:
    assert around.order({}, around.element("a", "north"), around.element("b", "south"), destination="target") == [
        "b",
        "a",
    ]


def test_fastest_link_is_nearest(around: Around) -> None:
    known = {("a", "target"): carried(200e6), ("b", "target"): carried(50e6)}

    assert around.order(known, around.element("a", "north"), around.element("b", "south"), destination="target") == [
        "a",
        "b",
    ]


def test_link_that_fails_is_less_near(around: Around) -> None:
    known = {("a", "target"): carried(200e6, errors=900), ("b", "target"): carried(50e6)}

    assert around.order(known, around.element("a"), around.element("b"), destination="target") == ["b", "a"]


def test_reader_at_a_site_is_served_as_its_storages_are(around: Around) -> None:
    known = {("a", "target"): carried(200e6)}

    assert around.order(known, around.element("a", "north"), around.element("b", "west"), site="south") == ["a", "b"]


def test_tape_and_what_cannot_be_reached_come_last_however_fast(around: Around) -> None:
    tape = around.element("a", media=storage_element_pb2.StorageElement.MEDIA_TAPE)
    known = {("a", "target"): carried(900e6), ("b", "target"): carried(900e6)}

    assert around.order(
        known, tape, around.element("b", reachable=False), around.element("c"), destination="target"
    ) == ["c", "a", "b"]
