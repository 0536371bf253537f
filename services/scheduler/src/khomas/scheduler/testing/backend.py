"""A batch system in memory, which does what a test tells it."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, ClassVar

from khomas.kit.credentials import Credentials, open_all
from khomas.kit.service import Host, Running, Service
from khomas.scheduler.app import migrate, start_with
from khomas.scheduler.backends.interface import (
    Capabilities,
    Chunk,
    ComputeResource,
    NotSupportedError,
    Observation,
    Outcome,
    PollResult,
    RenderedScript,
    Seen,
    State,
    SubmitItem,
    SubmitOutcome,
    Submitted,
    Usage,
)
from khomas.scheduler.config import BackendSettings, SchedulerSettings
from khomas.scheduler.placement.credentials import Wallet
from khomas.scheduler.placement.sites import Site, Sites


class Handover(Enum):
    """What becomes of the next handovers."""

    ACCEPT = "accept"
    REJECT = "reject"
    THROTTLE = "throttle"
    # The answer gets lost; the jobs have arrived.
    ANSWER_LOST = "answer lost"
    # The call gets lost.
    CALL_LOST = "call lost"
    # The scheduler's process ends before the jobs arrive, or after.
    DIES_BEFORE = "dies before"
    DIES_AFTER = "dies after"


@dataclass(slots=True)
class BatchSystem:
    """A backend whose jobs start and end when a test says so. It outlives restarts of the scheduler."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        kind="memory",
        min_poll_interval=timedelta(milliseconds=5),
        peek=True,
        live_usage=True,
        shared_folder=True,
        avoids_nodes=True,
    )

    handover: Handover = Handover.ACCEPT
    # False: polls fail.
    answers: bool = True
    # What it says of every job, and of one that it refuses, and where jobs are.
    words: str = ""
    refusal: str = "not today"
    node: str = ""
    items: dict[str, SubmitItem] = field(default_factory=dict)
    state: dict[str, State] = field(default_factory=dict)
    records: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    logs: dict[str, bytes] = field(default_factory=dict)
    # What running jobs have used so far.
    live: dict[str, Usage] = field(default_factory=dict)
    # Of which it was asked for, again and again.
    measured: list[str] = field(default_factory=list)
    # What accounting tells.
    used: dict[str, Usage] = field(default_factory=dict)
    # As much as anybody wants.
    queues: list[ComputeResource] = field(default_factory=lambda: [ComputeResource(queue="", cpu_milli=10**9)])
    # Tokens in the order of their handovers, repeated ones too.
    submitted: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    # Tokens that the scheduler was told about, by an answer or by a search.
    known: set[str] = field(default_factory=set)

    # --------------------------------------------------------------------------- what tests say

    def start(self, token: str) -> None:
        """Let a job run."""
        self.state[token] = State.RUNNING

    def end(self, token: str, reason: int = 0, **record: Any) -> None:
        """Let a job end with an exit record: well, or for a reason."""
        state = "CANCELLED" if reason == 600 else "FAILED" if reason else "SUCCEEDED"
        self.state[token] = State[state]
        self.records[token] = {
            "state": state,
            "reason": reason,
            "message": f"it ended with {reason}",
            "usage": {},
            "outputs": [],
            **record,
        }

    def vanish(self, token: str) -> None:
        """Lose a job."""
        del self.state[token]

    @property
    def going(self) -> list[str]:
        """Tokens of jobs that have not ended."""
        return [token for token, state in self.state.items() if not state.final]

    # ------------------------------------------------------------------------------ the Protocol

    def render(self, items: Sequence[SubmitItem]) -> list[RenderedScript]:
        """Nothing to see."""
        return [RenderedScript(item.token, f"{item.token}.sh", "true\n") for item in items]

    async def submit(self, items: Sequence[SubmitItem]) -> list[SubmitOutcome]:
        """Do as told."""
        if self.handover is Handover.CALL_LOST:
            raise ConnectionError("the call got lost")
        if self.handover is Handover.DIES_BEFORE:
            raise asyncio.CancelledError
        if self.handover is Handover.REJECT:
            return [SubmitOutcome(item.token, Submitted.REJECTED, message=self.refusal) for item in items]
        if self.handover is Handover.THROTTLE:
            pause = timedelta(milliseconds=20)
            return [SubmitOutcome(item.token, Submitted.THROTTLED, retry_after=pause) for item in items]
        for item in items:
            self.submitted.append(item.token)
            self.items[item.token] = item
            self.state.setdefault(item.token, State.QUEUED)
        if self.handover is Handover.ANSWER_LOST:
            raise ConnectionError("the answer got lost")
        if self.handover is Handover.DIES_AFTER:
            raise asyncio.CancelledError
        self.known |= {item.token for item in items}
        return [SubmitOutcome(item.token, Submitted.ACCEPTED, native_id=f"n{item.token}") for item in items]

    async def find(self, tokens: Sequence[str]) -> dict[str, str]:
        """Those that arrived."""
        if not self.answers:
            raise ConnectionError("no answer")
        found = {token: f"n{token}" for token in tokens if token in self.state}
        self.known |= found.keys()
        return found

    async def poll(self, ids: Sequence[str], cursor: str = "", measure: Collection[str] = ()) -> PollResult:
        """What the test said."""
        if not self.answers:
            raise ConnectionError("no answer")
        self.measured += measure
        return PollResult([self._seen(native_id, native_id in measure) for native_id in ids], complete=True, cursor="")

    async def cancel(self, ids: Sequence[str], grace: timedelta) -> list[Outcome]:
        """End them at once."""
        for native_id in ids:
            token = native_id[1:]
            self.cancelled.append(token)
            if token in self.going:
                self.end(token, 600)
        return [Outcome(native_id, done=True) for native_id in ids]

    async def hold(self, ids: Sequence[str], on: bool) -> list[Outcome]:
        """Refuse."""
        raise NotSupportedError("nothing is held here")

    async def peek(self, native_id: str, stream: str, offset: int, limit: int) -> Chunk:
        """Logs of stderr."""
        log = self.logs.get(native_id[1:], b"") if stream == "stderr" else b""
        start = max(0, len(log) + offset) if offset < 0 else offset
        return Chunk(start, log[start : start + limit], len(log))

    async def fetch_output(self, native_id: str, location: str, target: str) -> None:
        """Nothing to fetch."""
        raise FileNotFoundError(location)

    async def purge(self, ids: Sequence[str]) -> list[Outcome]:
        """Keep them: tests look at them."""
        return [Outcome(native_id, done=True) for native_id in ids]

    async def usage(self, ids: Sequence[str]) -> dict[str, Usage]:
        """What the test said."""
        return {native_id: self.used[native_id[1:]] for native_id in ids if native_id[1:] in self.used}

    async def list_resources(self) -> list[ComputeResource]:
        """What the test said."""
        return self.queues

    async def aclose(self) -> None:
        """Stay."""

    def _seen(self, native_id: str, measured: bool) -> Observation:
        token = native_id[1:]
        if token not in self.state:
            return Observation(token, native_id, Seen.ABSENT)
        record, state = self.records.get(token), self.state[token]
        start = datetime.now(UTC) if state is State.RUNNING else None
        return Observation(
            token,
            native_id,
            Seen.PRESENT,
            state,
            self.words,
            self.node,
            start_time=start,
            record=record,
            usage=self.live.get(token) if measured else None,
        )


def memory_sites(
    system: BatchSystem,
    max_jobs: int = 1000,
    settings: SchedulerSettings | None = None,
    others: Mapping[str, BatchSystem] | None = None,
) -> Sites:
    """The batch system as the backend `memory`, which wants to see the first of the credentials in the settings."""
    settings = settings or SchedulerSettings()
    wallet = Wallet(Credentials(open_all(settings.credentials)), settings.keeper, settings.credential_margin)
    backend = BackendSettings(kind="memory", max_jobs=max_jobs, credential=next(iter(settings.credentials), ""))
    sites = [Site("memory", backend, system)]
    sites += [Site(name, BackendSettings(kind="memory"), other) for name, other in (others or {}).items()]
    return Sites(sites, wallet)


def memory_scheduler(
    system: BatchSystem, max_jobs: int = 1000, others: Mapping[str, BatchSystem] | None = None
) -> Service[SchedulerSettings]:
    """The scheduler over this batch system, and over others by name."""

    async def start(settings: SchedulerSettings, host: Host) -> Running:
        return await start_with(settings, host, memory_sites(system, max_jobs, settings, others))

    return Service("scheduler", SchedulerSettings, start, migrate)
