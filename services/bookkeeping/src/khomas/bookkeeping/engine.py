"""Lets productions go on: follows the other services and works when something happened."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

import grpc
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.common.v1.event_pb2 import Event
from khomas.bookkeeping.arrivals import Arrivals
from khomas.bookkeeping.counting import Counting, jobs_of
from khomas.kit.database import Database

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.2, 10.0


class Engine:
    """Works in steps; each one goes on where a crash left it."""

    def __init__(
        self,
        database: Database,
        arrivals: Arrivals,
        counting: Counting,
        steps: Sequence[Callable[[], Awaitable[None]]],
        poll: timedelta,
    ) -> None:
        self._database = database
        self._arrivals = arrivals
        self._counting = counting
        self.steps = steps
        self._poll = poll.total_seconds()
        self._signal = asyncio.Event()

    def wake(self) -> None:
        """Make the engine look now."""
        self._signal.set()

    async def catalog_events(self, connection: AsyncConnection, events: Sequence[Event]) -> None:
        """Take in events of the catalogue."""
        await self._arrivals.handle(connection, events)
        self._database.after_commit(connection, self.wake)

    async def scheduler_events(self, connection: AsyncConnection, events: Sequence[Event]) -> None:
        """Take in the ends of jobs."""
        await self._counting.handle(connection, jobs_of(events))
        self._database.after_commit(connection, self.wake)

    async def relist(self) -> None:
        """Look at everything again after events were missed."""
        await self._arrivals.relist()
        self.wake()

    async def run(self) -> None:
        """Work for ever; a service that does not answer is asked again."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            self._signal.clear()
            try:
                for step in self.steps:
                    await step()
            except grpc.aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                continue
            pause = _FIRST_PAUSE_SECONDS
            await self._rest()

    async def _rest(self) -> None:
        try:
            async with asyncio.timeout(self._poll):
                await self._signal.wait()
        except TimeoutError:
            return
