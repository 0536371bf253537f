"""Lets productions go on: follows the other services and works when something happened."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

import grpc
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.common.v1.event_pb2 import Event
from khomas.bookkeeping.activities import Activities, of_adoptions, of_jobs, of_uploads
from khomas.bookkeeping.arrivals import Arrivals
from khomas.bookkeeping.counting import Counting, jobs_of
from khomas.bookkeeping.releases import Releases
from khomas.kit.database import Database

log = logging.getLogger(__name__)

_ABSENCE_SECONDS = 60.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.2, 10.0


class Engine:
    """Works in steps; each one goes on where a crash left it."""

    def __init__(
        self,
        database: Database,
        arrivals: Arrivals,
        counting: Counting,
        activities: Activities,
        releases: Releases,
        steps: Sequence[Callable[[], Awaitable[None]]],
        poll: timedelta,
    ) -> None:
        self._database = database
        self._arrivals = arrivals
        self._counting = counting
        self._activities = activities
        self._releases = releases
        self.steps = steps
        self._poll = poll.total_seconds()
        self._signal = asyncio.Event()

    def wake(self) -> None:
        """Make the engine look now."""
        self._signal.set()

    async def catalog_events(self, connection: AsyncConnection, events: Sequence[Event]) -> None:
        """Take in events of the catalogue."""
        await self._arrivals.handle(connection, events)
        await self._activities.record(connection, of_adoptions(events))
        self._database.after_commit(connection, self.wake)

    async def scheduler_events(self, connection: AsyncConnection, events: Sequence[Event]) -> None:
        """Take in the ends of jobs."""
        jobs = jobs_of(events)
        await self._counting.handle(connection, jobs)
        await self._activities.record(connection, of_jobs(jobs))
        self._database.after_commit(connection, self.wake)

    async def storage_events(self, connection: AsyncConnection, events: Sequence[Event]) -> None:
        """Take in what people uploaded."""
        await self._activities.record(connection, of_uploads(events))

    async def missed_uploads(self) -> None:
        """Go on with what is uploaded from now on: nobody can be asked for the uploads whose events are gone."""
        log.warning("uploads.missed")

    async def archive_events(self, connection: AsyncConnection, events: Sequence[Event]) -> None:
        """Take in what was released."""
        await self._releases.handle(connection, events)
        self._database.after_commit(connection, self.wake)

    async def relist(self) -> None:
        """Look at everything again after events were missed."""
        await self._arrivals.relist()
        self.wake()

    async def run(self) -> None:
        """Work for ever; what went wrong is tried again after a growing pause."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            self._signal.clear()
            if await self._work():
                pause = _FIRST_PAUSE_SECONDS
                await self._rest()
            else:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _work(self) -> bool:
        """Take every step, whatever became of the one before; tell whether all went well."""
        good = True
        for step in self.steps:
            try:
                await step()
            except grpc.aio.AioRpcError as error:
                good = False
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    log.exception("step.failed")
            except Exception:
                good = False
                log.exception("step.failed")
        return good

    async def _rest(self) -> None:
        try:
            async with asyncio.timeout(self._poll):
                await self._signal.wait()
        except TimeoutError:
            return


def optional(follow: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    """Follow a service that an installation may lack: look for it again now and then."""

    async def run() -> None:
        while True:
            try:
                await follow()
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                    raise
                await asyncio.sleep(_ABSENCE_SECONDS)

    return run
