"""Does transfers: claims them, copies in worker threads, tells the catalogue in batches, settles."""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import grpc

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.catalog.v1 import file_pb2
from khomas.api.storage.v1 import transfer_pb2 as pb
from khomas.kit.boundary.status import reason_of
from khomas.kit.errors import DomainError, UpstreamUnavailable
from khomas.storage import paths
from khomas.storage.catalog import Catalog
from khomas.storage.checksums import Algorithm
from khomas.storage.copying import Copy, CopyFailed, destination_side, published
from khomas.storage.downloads import reading_order
from khomas.storage.elements import Element, Elements, Protocols
from khomas.storage.landing import Landing, Landings, Wanted, digest
from khomas.storage.protocols.interface import ProtocolFault
from khomas.storage.transfer_queue import Outcome, Queue
from khomas.storage.transfers import sources_of

log = logging.getLogger(__name__)

_GATHER = 500
_SUCCESS = pb.TRANSFER_REASON_UNSPECIFIED


@dataclass(slots=True)
class _Task:
    """A transfer that this process works on."""

    row: Mapping[str, Any]
    copy: Copy
    start_time: datetime
    started: float
    source: str = ""
    source_path: str = ""
    path: str = ""
    copied: Wanted | None = None

    def outcome(self, reason: pb.TransferReason.ValueType = _SUCCESS, message: str = "") -> Outcome:
        return Outcome(
            uid=self.row["uid"],
            epoch=self.row["lease_epoch"],
            attempt=self.row["attempt"],
            max_attempts=self.row["max_attempts"],
            file_uid=self.row["file_uid"],
            destination=self.row["destination"],
            source=self.source,
            source_path=self.source_path,
            path=self.path,
            reason=reason,
            message=message,
            bytes=self.copy.bytes,
            copied=self.copied,
            start_time=self.start_time,
            elapsed_seconds=time.monotonic() - self.started,
        )


class Mover:
    """The executor of transfers that streams through this process."""

    def __init__(
        self,
        queue: Queue,
        catalog: Catalog,
        elements: Elements,
        protocols: Protocols,
        *,
        workers: int,
        poll: timedelta,
        lease: timedelta,
    ) -> None:
        self._queue = queue
        self._catalog = catalog
        self._elements = elements
        self._protocols = protocols
        self._workers = workers
        self._poll = poll.total_seconds()
        self._renewal = lease.total_seconds() / 3
        self._landings = Landings()
        self._tasks: dict[str, _Task] = {}
        self._outcomes: asyncio.Queue[Outcome] = asyncio.Queue()
        self._free = asyncio.Event()

    async def run(self) -> None:
        """Work until cancelled; copies under way are stopped then, and done again by whoever comes next."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._settle())
                group.create_task(self._renew())
                while True:
                    await self._start(group)
                    await self._wait()
        finally:
            self._tasks.clear()

    async def _start(self, group: asyncio.TaskGroup) -> None:
        """Claim as many as there are free workers, with one question to the catalogue for all of them."""
        idle = self._workers - len(self._tasks)
        rows = await self._queue.claim(idle) if idle else []
        if not rows:
            return
        try:
            files = await self._catalog.files([f"files/{row['file_uid']}" for row in rows])
        except (DomainError, grpc.aio.AioRpcError) as error:
            files = []
            problem = f"the catalogue does not answer: {error}"
        failed = await self._queue.failed_sources([row["uid"] for row in rows])
        for number, row in enumerate(rows):
            task = _Task(row, Copy(Wanted(0, "")), datetime.now(UTC), time.monotonic())
            self._tasks[row["uid"]] = task
            if not files:
                self._outcomes.put_nowait(task.outcome(pb.TRANSFER_REASON_TRANSIENT, problem))
                continue
            group.create_task(self._attempt(task, files[number], failed.get(row["uid"], [])))

    def wake(self) -> None:
        """Look at the queue now."""
        self._free.set()

    async def _wait(self) -> None:
        self._free.clear()
        try:
            async with asyncio.timeout(self._poll):
                await self._free.wait()
        except TimeoutError:
            return

    async def _attempt(self, task: _Task, result: catalog_pb.FileResult, failed: Sequence[str]) -> None:
        try:
            outcome = await self._moved(task, result, failed)
        except CopyFailed as failure:
            outcome = task.outcome(failure.reason, failure.message)
        except DomainError as error:
            outcome = task.outcome(pb.TRANSFER_REASON_CONFIGURATION, error.message)
        except Exception as error:
            log.exception("transfer.broken", extra={"transfer": task.row["uid"]})
            outcome = task.outcome(pb.TRANSFER_REASON_TRANSIENT, f"{type(error).__name__}: {error}")
        self._outcomes.put_nowait(outcome)

    async def _moved(self, task: _Task, result: catalog_pb.FileResult, failed: Sequence[str]) -> Outcome:
        file, row = result.file, task.row
        if result.HasField("error") or file.state != file_pb2.File.STATE_ACTIVE:
            raise CopyFailed(pb.TRANSFER_REASON_NO_SOURCE, "the file is not in the catalogue any more")
        elements = await self._elements.all()
        destination = elements.get(row["destination"])
        if destination is None:
            raise CopyFailed(pb.TRANSFER_REASON_CONFIGURATION, f"there is no StorageElement {row['destination']}")
        if not destination.takes_files:
            raise CopyFailed(pb.TRANSFER_REASON_DESTINATION, f"{destination.id} is read-only")
        there = [replica for replica in file.replicas if replica.storage_element == destination.id]
        if there and there[0].state == file_pb2.Replica.STATE_AVAILABLE:
            return task.outcome(message="The file has a replica there already.")
        wanted = Wanted(file.size_bytes, file.checksums.adler32)
        if not await self._arrived_before(task, wanted, destination):
            await self._check_room(destination, wanted.size_bytes)
            task.copy = Copy(wanted)
            source = self._source(task, file, elements, destination, failed)
            await self._copied(task, source, destination)
        task.copied = wanted
        return task.outcome()

    async def _check_room(self, destination: Element, size_bytes: int) -> None:
        """Refuse what a capacity does not allow; what the disk does not allow it says itself."""
        if destination.capacity_bytes:
            free = destination.capacity_bytes - await self._queue.used_bytes(destination.id)
            if free < size_bytes:
                message = f"{destination.id} may take {max(free, 0)} more bytes, {size_bytes} are needed"
                raise CopyFailed(pb.TRANSFER_REASON_SPACE, message)

    async def _copied(self, task: _Task, source: Element, destination: Element) -> None:
        with destination_side():
            landing = await self._landings.begin(self._protocols.of(destination))
        async with landing:
            await task.copy.run(self._protocols.of(source), task.source_path, landing)
            await self._publish(task, landing, paths.for_file(task.row["file"]))

    def _source(
        self,
        task: _Task,
        file: file_pb2.File,
        elements: Mapping[str, Element],
        destination: Element,
        failed: Sequence[str],
    ) -> Element:
        allowed = set(sources_of(task.row)) or set(elements)
        order = [
            (element, replica)
            for element, replica in reading_order(file, elements, destination.site)
            if element.id in allowed and element.id != destination.id
        ]
        if not order:
            raise CopyFailed(pb.TRANSFER_REASON_NO_SOURCE, "no replica is left to read from")
        element, replica = min(order, key=lambda pair: failed.count(pair[0].id))
        task.source, task.source_path = element.id, replica.path
        return element

    async def _arrived_before(self, task: _Task, wanted: Wanted, destination: Element) -> bool:
        """Tell whether an earlier attempt got the copy there, but could not tell anybody."""
        path = task.row["path"]
        if not path:
            return False
        task.path = path
        try:
            found = await digest(self._protocols.of(destination), path, {Algorithm.ADLER32: wanted.adler32})
        except ProtocolFault:
            return False
        return (found.size_bytes, found.value) == (wanted.size_bytes, wanted.adler32)

    async def _publish(self, task: _Task, landing: Landing, wanted: str) -> None:
        """Give the copy its name, or one beside it. The name is noted first: a crash must leave nothing unknown."""
        uid, epoch = task.row["uid"], task.row["lease_epoch"]
        for path in (wanted, paths.beside(wanted, uid), paths.apart(wanted, uid)):
            if not await self._queue.note_path(uid, epoch, path):
                raise CopyFailed(pb.TRANSFER_REASON_CANCELLED, "the transfer was taken back or taken over")
            if await published(landing, path):
                task.path = path
                return
        raise CopyFailed(pb.TRANSFER_REASON_DESTINATION, f"{wanted} and the names beside it are taken")

    async def _settle(self) -> None:
        while True:
            outcomes = [await self._outcomes.get()]
            while not self._outcomes.empty() and len(outcomes) < _GATHER:
                outcomes.append(self._outcomes.get_nowait())
            await self._queue.settle(await self._announced(outcomes))
            for one in outcomes:
                self._tasks.pop(one.uid, None)
            self._free.set()

    async def _announced(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Tell the catalogue of new and of damaged replicas, in one call or, if it refuses that, one by one."""
        updates = _updates(outcomes)
        if not updates:
            return list(outcomes)
        try:
            await self._catalog.update_replicas(updates, str(uuid4()))
        except UpstreamUnavailable as error:
            return [_unannounced(one, pb.TRANSFER_REASON_TRANSIENT, error.message) for one in outcomes]
        except grpc.aio.AioRpcError as error:
            if len(outcomes) > 1:
                return [settled for one in outcomes for settled in await self._announced([one])]
            gone = reason_of(error) in {"FILE_NOT_FOUND", "NOT_FOUND"}
            reason = pb.TRANSFER_REASON_NO_SOURCE if gone else pb.TRANSFER_REASON_CONFIGURATION
            await self._remove(outcomes[0])
            return [_unannounced(outcomes[0], reason, f"the catalogue refused: {error.details()}")]
        return list(outcomes)

    async def _remove(self, one: Outcome) -> None:
        """Remove a copy that the catalogue does not want."""
        destination = (await self._elements.all()).get(one.destination)
        if one.copied is not None and destination is not None:
            (fault,) = await self._protocols.of(destination).delete([one.path])
            if fault is not None:
                log.warning("transfer.left_behind", extra={"path": one.path, "error": fault.message})

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._renewal)
            epochs = {uid: task.row["lease_epoch"] for uid, task in self._tasks.items()}
            if not epochs:
                continue
            kept = await self._queue.renew(epochs)
            for uid in epochs.keys() - kept:
                if (lost := self._tasks.get(uid)) is not None:
                    lost.copy.stop()


def _updates(outcomes: Sequence[Outcome]) -> list[catalog_pb.ReplicaUpdate]:
    """Return what the catalogue must learn from outcomes, one entry a file."""
    updates: dict[str, catalog_pb.ReplicaUpdate] = {}
    for one in outcomes:
        update = updates.setdefault(one.file_uid, catalog_pb.ReplicaUpdate(name=f"files/{one.file_uid}"))
        if one.reason == pb.TRANSFER_REASON_SOURCE_CHECKSUM:
            suspect = file_pb2.Replica.STATE_SUSPECT
            update.set.add(storage_element=one.source, path=one.source_path, state=suspect)
        elif one.copied is not None:
            available = file_pb2.Replica.STATE_AVAILABLE
            replica = update.set.add(storage_element=one.destination, path=one.path, state=available)
            replica.verify_time.FromDatetime(datetime.now(UTC))
            update.size_bytes, update.adler32 = one.copied.size_bytes, one.copied.adler32
    return [update for update in updates.values() if update.set]


def _unannounced(one: Outcome, reason: pb.TransferReason.ValueType, message: str) -> Outcome:
    """Return a success that the catalogue does not know as a failure; everything else as it is."""
    return one if one.copied is None else replace(one, reason=reason, message=message)
