"""Does transfers: claims them by lane, has each run moved by one stream or another executor, settles in batches."""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

import grpc

from khomas.api.storage.v1 import transfer_pb2 as pb
from khomas.kit.errors import DomainError
from khomas.storage.catalog import Catalog
from khomas.storage.elements.elements import Element, Elements, Protocols
from khomas.storage.executors.outside import Outside
from khomas.storage.landing import Landings
from khomas.storage.links.measures import Measures
from khomas.storage.links.rates import Rates
from khomas.storage.recalls.online import Online
from khomas.storage.transfers.announcing import Announcing
from khomas.storage.transfers.attempts import Attempt, plan
from khomas.storage.transfers.copying import CopyFailed
from khomas.storage.transfers.moving import Moving, ending
from khomas.storage.transfers.queue import Outcome, Queue

log = logging.getLogger(__name__)

_GATHER: Final = 500
# How often progress is written down, of attempts that take longer than that.
_PROGRESS_SECONDS: Final = 2.0
# Before the database is asked again.
_PAUSE_SECONDS: Final = 1.0


class Mover:
    """Works on the queue."""

    def __init__(
        self,
        queue: Queue,
        catalog: Catalog,
        elements: Elements,
        protocols: Protocols,
        measures: Measures,
        rates: Rates,
        outside: Outside,
        online: Online,
        *,
        workers: int,
        poll: timedelta,
        lease: timedelta,
    ) -> None:
        self._queue = queue
        self._catalog = catalog
        self._elements = elements
        self._protocols = protocols
        self._measures = measures
        self._rates = rates
        self._outside = outside
        self._online = online
        self._workers = workers
        self._poll = poll.total_seconds()
        self._renewal = lease.total_seconds() / 3
        self._moving = Moving(queue, protocols, Landings(), rates.throttle)
        self._announcing = Announcing(catalog, elements, protocols)
        self._attempts: dict[str, Attempt] = {}
        self._streams = 0
        self._outcomes: asyncio.Queue[Outcome] = asyncio.Queue()
        self._free = asyncio.Event()

    async def run(self) -> None:
        """Work until cancelled; copies under way are stopped then, and done again by whoever comes next."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._settle())
                group.create_task(self._renew())
                group.create_task(self._tell())
                while True:
                    with _enduring("claim"):
                        await self._start(group)
                    await self._wait()
        finally:
            self._attempts.clear()
            self._streams = 0

    def wake(self) -> None:
        """Look at the queue now."""
        self._free.set()

    async def _start(self, group: asyncio.TaskGroup) -> None:
        """Claim for all free streams, with one question to the catalogue for all that is claimed."""
        idle = self._workers - self._streams
        if not idle:
            return
        elements = await self._elements.all()
        runs = await self._queue.claim(idle, {one.id: one.site for one in elements.values()})
        if not runs:
            return
        now, begun = datetime.now(UTC), time.monotonic()
        attempts = [[Attempt(row, now, begun) for row in run] for run in runs]
        self._attempts |= {one.uid: one for run in attempts for one in run}
        every = [one for run in attempts for one in run]
        try:
            await self._plan(every, elements)
        except DomainError as error:
            for one in every:
                one.end(pb.TRANSFER_REASON_TRANSIENT, error.message)
        for run in attempts:
            self._streams += 1
            group.create_task(self._run(run, elements))

    async def _plan(self, attempts: Sequence[Attempt], elements: Mapping[str, Element]) -> None:
        failed = await self._queue.failed_sources([one.uid for one in attempts if one.row["attempt"] > 1])
        await self._rates.refresh(elements)
        # Before the catalogue: it knows of each deletion that is over then.
        leaving = await self._queue.leaving([one.row["file_uid"] for one in attempts])
        try:
            results = await self._catalog.files([f"files/{one.row['file_uid']}" for one in attempts])
        except (DomainError, grpc.aio.AioRpcError) as error:
            for attempt in attempts:
                attempt.end(pb.TRANSFER_REASON_TRANSIENT, f"the catalogue does not answer: {error}")
            return
        files = {attempt.uid: result.file for attempt, result in zip(attempts, results, strict=True)}
        offline = await self._online.offline(files.values())
        for attempt, result in zip(attempts, results, strict=True):
            with ending(attempt):
                plan(attempt, result, elements, self._measures.known, failed.get(attempt.uid, []), offline, leaving)
        late = [one for one in attempts if one.ended and one.ended.reason == pb.TRANSFER_REASON_ON_TAPE]
        await self._online.want([files[one.uid] for one in late])
        await self._check_room(attempts, elements)

    async def _check_room(self, attempts: Sequence[Attempt], elements: Mapping[str, Element]) -> None:
        """Refuse what a capacity does not allow; what the disk does not allow it says itself."""
        bounded = {
            one.row["destination"]: elements[one.row["destination"]].capacity_bytes
            for one in attempts
            if one.ended is None and elements[one.row["destination"]].capacity_bytes
        }
        if not bounded:
            return
        used = await self._queue.used_bytes(bounded)
        free = {name: capacity - used.get(name, 0) for name, capacity in bounded.items()}
        for attempt in attempts:
            name, need = attempt.row["destination"], attempt.wanted.size_bytes
            if attempt.ended is None and name in free:
                with ending(attempt):
                    if free[name] < need:
                        message = f"{name} may take {max(free[name], 0)} more bytes, {need} are needed"
                        raise CopyFailed(pb.TRANSFER_REASON_SPACE, message)
                    free[name] -= need

    async def _run(self, attempts: Sequence[Attempt], elements: Mapping[str, Element]) -> None:
        begin = time.monotonic()
        left = [one for one in attempts if one.ended is None]
        # Whoever only asks how far others are leaves the stream to the next one.
        ours = not (left and self._outside.takes(left))
        self._streams -= not ours
        message = "nothing was moved"
        try:
            if left:
                destination = elements[left[0].row["destination"]]
                if ours:
                    await self._moving.run(left, destination)
                else:
                    await self._outside.run(left, destination, self._moving)
        except Exception as error:
            log.exception("transfer.run_broken")
            message = f"{type(error).__name__}: {error}"
        finally:
            self._streams -= ours
        seconds = (time.monotonic() - begin) / len(attempts)
        for one in attempts:
            lost = one.copied is None
            ended = one.ended or (one.end(pb.TRANSFER_REASON_TRANSIENT, message) if lost else one.end())
            self._outcomes.put_nowait(replace(ended, stream_seconds=seconds))

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(self._poll):
                await self._free.wait()
        except TimeoutError:
            return
        finally:
            self._free.clear()

    async def _settle(self) -> None:
        while True:
            outcomes = [await self._outcomes.get()]
            while not self._outcomes.empty() and len(outcomes) < _GATHER:
                outcomes.append(self._outcomes.get_nowait())
            await self._written(outcomes)
            for one in outcomes:
                self._attempts.pop(one.uid, None)
            self._free.set()

    async def _written(self, outcomes: Sequence[Outcome]) -> None:
        while True:
            with _enduring("settle"):
                # What was taken back or over is announced by nobody, or by somebody else.
                ours = await self._queue.renew({one.uid: one.epoch for one in outcomes})
                await self._queue.settle(await self._announcing.announced([one for one in outcomes if one.uid in ours]))
                return
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._renewal)
            epochs = {uid: attempt.epoch for uid, attempt in self._attempts.items()}
            if not epochs:
                continue
            with _enduring("renew"):
                kept = await self._queue.renew(epochs)
                for uid in epochs.keys() - kept:
                    if (lost := self._attempts.get(uid)) is not None:
                        lost.copy.stop()

    async def _tell(self) -> None:
        """Write down how far attempts are that take long."""
        told: dict[str, int] = {}
        while True:
            await asyncio.sleep(_PROGRESS_SECONDS)
            now = {uid: one.copy.bytes for uid, one in self._attempts.items() if one.copy.bytes}
            moved = {uid: (self._attempts[uid].epoch, size) for uid, size in now.items() if told.get(uid) != size}
            if moved:
                with _enduring("tell"):
                    await self._queue.note_progress(moved)
                    # Others may have come to the same links, or left them.
                    await self._rates.refresh(await self._elements.all())
            told = now


class _enduring:  # noqa: N801  reads as a statement
    """Go on when the database is away or busy: copies under way are worth more, and it is asked again."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        """Take what a database says that is asked at a bad moment."""
        if not isinstance(error, DomainError):
            return False
        log.warning("transfer.put_off", extra={"what": self._what, "error": error.message})
        return True
