"""Runs all loops of the engine while this process has the right to."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from sqlalchemy import select

from khomas.api.scheduler.v1.state_pb2 import JobState
from khomas.scheduler import tables
from khomas.scheduler.backends import received
from khomas.scheduler.engine.care import Care
from khomas.scheduler.engine.collect import Collector
from khomas.scheduler.engine.credentials import CredentialKeeping
from khomas.scheduler.engine.desk import Desk
from khomas.scheduler.engine.dispatch import Dispatcher
from khomas.scheduler.engine.finish import Finisher
from khomas.scheduler.engine.housekeeping import Housekeeping
from khomas.scheduler.engine.observe import Observer
from khomas.scheduler.engine.retention import Retention
from khomas.scheduler.engine.slowness import Slowness
from khomas.scheduler.engine.strays import Strays
from khomas.scheduler.lifecycle.verdicts import kept
from khomas.scheduler.records import Attempt
from khomas.scheduler.store.leadership import LeadershipLost

log = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 10.0


class Engine:
    """Moves jobs, in one process a database."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.dispatcher = Dispatcher(desk)
        self.finisher = Finisher(desk)
        self.housekeeping = Housekeeping(desk)
        self.collector = Collector(desk)
        self.care = Care(desk)
        self.credentials = CredentialKeeping(desk)
        self.slowness = Slowness(desk)
        self.retention = Retention(desk)
        self.strays = Strays(desk)
        self.observers = [Observer(desk, site) for site in desk.sites]

    async def run(self) -> None:
        """Work while it is our turn; wait for it otherwise."""
        poll = self._desk.settings.poll.total_seconds()
        while True:
            if not await self._desk.leadership.acquire():
                await asyncio.sleep(poll)
                continue
            try:
                await self.load()
                await self._work()
            except* LeadershipLost:
                log.warning("leadership.lost")
            finally:
                self._forget()

    async def load(self) -> None:
        """Read the attempts that are open. Those that may or may not have arrived are looked for first."""
        table = tables.attempt
        async with self._desk.database.read() as connection:
            rows = (await connection.execute(select(table).where(table.c.end_time.is_(None)))).all()
        for observer in self.observers:
            observer.begin_again()
        for row in rows:
            attempt = Attempt._make(row)
            if attempt.state == JobState.JOB_STATE_FINISHING:
                attempt = attempt._replace(record=kept(received.record(attempt.record)))
            self._desk.opened(attempt)
            if attempt.state == JobState.JOB_STATE_SUBMITTING:
                self._desk.open[attempt.uid].find_at = asyncio.get_running_loop().time()

    async def _work(self) -> None:
        poll = self._desk.settings.poll.total_seconds()
        async with asyncio.TaskGroup() as loops:
            loops.create_task(_steady("dispatch", self.dispatcher.run))
            loops.create_task(_steady("recalls", self.dispatcher.recalling.follow))
            loops.create_task(_steady("finish", self.finisher.run))
            loops.create_task(_steady("cancel", self.housekeeping.cancel))
            loops.create_task(_steady("look", self.housekeeping.look))
            if list(self._desk.sites.wallet.credentials):
                loops.create_task(_steady("credentials", self.credentials.run))
            for observer in self.observers:
                loops.create_task(_steady("observe", observer.run))
            renewal = self._desk.settings.lease.total_seconds() / 3
            loops.create_task(_steady("renew", _repeated(self._desk.leadership.renew, renewal)))
            for name, job in (
                ("deadlines", self.housekeeping.deadlines),
                ("abandon", self.housekeeping.abandon),
                ("uploads", self.housekeeping.renew),
                ("strays", self.strays.step),
                ("collect", self.collector.step),
                ("care", self.care.step),
                ("recalled", self.dispatcher.recalling.wake),
                ("transcript", self._desk.transcript.write),
            ):
                loops.create_task(_steady(name, _repeated(job, poll)))
            interval = self._desk.settings.usage_interval.total_seconds()
            loops.create_task(_steady("slow", _repeated(self.slowness.step, interval)))
            pause = self._desk.settings.retention_pause.total_seconds()
            loops.create_task(_steady("retain", _repeated(self.retention.step, pause)))

    def _forget(self) -> None:
        """What another process may have changed meanwhile is read again."""
        self._desk.open.clear()
        self._desk.strays.clear()
        for site in self._desk.sites:
            site.attempts.clear()


def _repeated(job: Callable[[], Awaitable[None]], pause: float) -> Callable[[], Awaitable[None]]:
    async def loop() -> None:
        while True:
            await job()
            await asyncio.sleep(pause)

    return loop


async def _steady(name: str, loop: Callable[[], Awaitable[None]]) -> None:
    """Run a loop for ever; an error in it is logged and must not stop the others."""
    pause = _FIRST_PAUSE
    while True:
        began = asyncio.get_running_loop().time()
        try:
            await loop()
        except LeadershipLost:
            raise
        except Exception:
            if asyncio.get_running_loop().time() - began > _LONGEST_PAUSE:
                pause = _FIRST_PAUSE  # it went well for a while
            log.exception("engine.failed", extra={"loop": name, "again_in_seconds": pause})
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
