"""What all steps of the engine work with."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import inf
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.scheduler.v1.state_pb2 import Reason
from khomas.kit.database import Database
from khomas.scheduler.backends.interface import Usage
from khomas.scheduler.catalog import Catalog
from khomas.scheduler.config import SchedulerSettings
from khomas.scheduler.engine.transcript import Transcript
from khomas.scheduler.intake.sandboxes import Sandboxes
from khomas.scheduler.lifecycle.retry import Defaults
from khomas.scheduler.placement.locality import Locality
from khomas.scheduler.placement.sites import Sites
from khomas.scheduler.records import Attempt
from khomas.scheduler.signals import Signal
from khomas.scheduler.storage import Storage
from khomas.scheduler.store.accounting import Accounting
from khomas.scheduler.store.blueprints import Blueprints
from khomas.scheduler.store.changes import Changes
from khomas.scheduler.store.leadership import Leadership


@dataclass(slots=True)
class Open:
    """An attempt that has not ended, with what is known of it beyond its row."""

    attempt: Attempt
    # On the monotonic clock.
    last_seen: float
    absent_polls: int = 0
    absent_since: float = 0.0
    # Without a sign of life for so many seconds it is stalled; None = not looked up yet.
    patience: float | None = None
    # When the backend was last told to end it.
    cancel_sent: float = -1e9
    # When whether it arrived is looked at again.
    find_at: float = 0.0
    not_found: int = 0
    # What it has used so far, where its backend tells.
    usage: Usage | None = None
    # When that is asked for again, and how often; never unless its spec wants slow jobs to be found.
    measure_at: float = inf
    measure_every: float = 0.0


@dataclass(slots=True)
class Desk:
    """Stores, other services, backends, and the attempts that are open."""

    settings: SchedulerSettings
    database: Database
    changes: Changes
    leadership: Leadership
    blueprints: Blueprints
    sites: Sites
    storage: Storage
    catalog: Catalog
    sandboxes: Sandboxes
    accounting: Accounting
    locality: Locality
    # Logs and sandbox outputs, by attempt.
    folder: Path
    transcript: Transcript
    # By attempt uid.
    open: dict[str, Open] = field(default_factory=dict)
    # Those at backends that the configuration does not have any more.
    strays: set[str] = field(default_factory=set)
    # Attempts that ended and that nothing was learnt from yet.
    ended: list[Attempt] = field(default_factory=list)
    # Uploads that nobody will commit.
    abandoned: list[str] = field(default_factory=list)
    due: Signal = field(default_factory=Signal)
    finishing: Signal = field(default_factory=Signal)
    cancelling: Signal = field(default_factory=Signal)

    @property
    def defaults(self) -> Defaults:
        """What a retry policy that does not say means."""
        settings = self.settings
        return Defaults(settings.max_attempts, settings.initial_backoff, settings.max_backoff)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction that fails when another process works on the jobs by now."""
        async with self.database.write() as connection:
            await self.leadership.fence(connection)
            yield connection

    def opened(self, attempt: Attempt) -> None:
        """Note an attempt that has not ended."""
        known = self.open.get(attempt.uid)
        if known is None:
            self.open[attempt.uid] = Open(attempt, asyncio.get_running_loop().time())
        else:
            self._started(known.attempt, attempt)
            known.attempt = attempt
        if attempt.backend in self.sites:
            self.sites[attempt.backend].attempts.add(attempt.uid)
        else:
            self.strays.add(attempt.uid)

    def closed(self, attempt: Attempt) -> None:
        """Note the end of an attempt: there is room for another."""
        if known := self.open.pop(attempt.uid, None):
            self._started(known.attempt, attempt)
            self.ended.append(attempt)
        # What the catalogue refused stays, so that it can be looked at.
        if attempt.upload and attempt.reason != Reason.REASON_DATA_REGISTER and not _committed(attempt):
            self.abandoned.append(attempt.upload)
        if attempt.backend in self.sites:
            self.sites[attempt.backend].attempts.discard(attempt.uid)
        self.strays.discard(attempt.uid)
        self.due.set()

    def _started(self, before: Attempt, after: Attempt) -> None:
        if before.start_time is None and after.start_time is not None and after.backend in self.sites:
            self.sites[after.backend].reputation.started(after)

    def open_at(self, site: str) -> Iterator[Open]:
        """Attempts that a backend has."""
        return (self.open[uid] for uid in list(self.sites[site].attempts) if uid in self.open)

    def attempt_folder(self, attempt_uid: str) -> Path:
        """Where logs and sandbox outputs of an attempt are kept."""
        return self.folder / attempt_uid


def _committed(attempt: Attempt) -> bool:
    return any(output.get("name") for output in attempt.outputs)


def now() -> datetime:
    """This moment."""
    return datetime.now(UTC)
