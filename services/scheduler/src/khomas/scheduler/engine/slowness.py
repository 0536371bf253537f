"""Looks after slow jobs: marks them, tells their owners, ends those that nobody answered for."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.scheduler.v1.state_pb2 import DesiredState, JobState, Reason
from khomas.kit.database import in_values, insert_many
from khomas.kit.events import NewEvent
from khomas.scheduler import tables
from khomas.scheduler.answers.slow_jobs import Marked, low_efficiency
from khomas.scheduler.engine.desk import Desk, Open, now
from khomas.scheduler.lifecycle.slow import SlowPolicy, Window
from khomas.scheduler.records import Job
from khomas.scheduler.store.changes import Change, lock_jobs, moved, read_jobs

_table = tables.slow
_CANCEL = DesiredState.DESIRED_STATE_CANCEL
_RUNNING = JobState.JOB_STATE_RUNNING


@dataclass(frozen=True, slots=True)
class _Found:
    """What has to be written."""

    new: Sequence[tuple[Open, Window]]
    # Attempts that ended, or get on again.
    over: Sequence[str]
    # Nobody has answered in time.
    late: Sequence[Marked]


class Slowness:
    """Judges attempts by what they use while they run."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        # By attempt; None = its spec does not care.
        self._windows: dict[str, Window | None] = {}

    async def step(self) -> None:
        """Judge once."""
        telling = {site.name for site in self._desk.sites if site.backend.capabilities.live_usage}
        running = {
            one.attempt.uid: one
            for one in list(self._desk.open.values())
            if one.attempt.state == _RUNNING and one.attempt.backend in telling
        }
        self._windows = {uid: window for uid, window in self._windows.items() if uid in running}
        async with self._desk.database.read() as connection:
            marked = {row.attempt: Marked(*row) for row in (await connection.execute(select(_table))).all()}
            await self._get_to_know(connection, [one for uid, one in running.items() if uid not in self._windows])
        found = self._judged(running, marked, now())
        if found.new or found.over or found.late:
            await self._write(found, now())

    async def _get_to_know(self, connection: AsyncConnection, unknown: Sequence[Open]) -> None:
        if not unknown:
            return
        jobs = {job.uid: job for job in await read_jobs(connection, [one.attempt.job for one in unknown])}
        plans = await self._desk.blueprints.of(connection, {job.spec for job in jobs.values()})
        for one in unknown:
            policy = SlowPolicy.of(plans[jobs[one.attempt.job].spec].spec)
            self._windows[one.attempt.uid] = Window(policy) if policy is not None else None
            if policy is not None:
                one.measure_at, one.measure_every = 0.0, policy.step.total_seconds()

    def _judged(self, running: Mapping[str, Open], marked: Mapping[str, Marked], moment: datetime) -> _Found:
        new, fine = [], []
        for uid, one in running.items():
            window = self._windows[uid]
            if window is None or one.usage is None:
                continue
            window.add(one.usage)
            if window.slow and uid not in marked:
                new.append((one, window))
            elif window.efficiency is not None and not window.slow and uid in marked:
                fine.append(uid)
        over = [uid for uid in marked if uid not in self._desk.open]
        late = [one for uid, one in marked.items() if uid not in over and one.kill_time and one.kill_time <= moment]
        return _Found(new, [*over, *fine], [one for one in late if one.attempt not in fine])

    async def _write(self, found: _Found, moment: datetime) -> None:
        rows = [_row(one, window, moment) for one, window in found.new]
        async with self._desk.write() as connection:
            if found.over:
                await connection.execute(delete(_table).where(in_values(_table.c.attempt, found.over)))
            await insert_many(connection, _table, [row.values() for row in rows])
            jobs = {job.uid: job for job in await lock_jobs(connection, [one.job for one in [*rows, *found.late]])}
            told = [(one, row) for (one, window), row in zip(found.new, rows, strict=True) if window.policy.notifies]
            await self._desk.changes.events.append(connection, self._events(told, jobs))
            # Somebody may have answered since.
            query = select(_table.c.attempt).where(_table.c.kill_time <= moment)
            late = set((await connection.execute(query)).scalars()) if found.late else set()
            ends = [
                _ended(jobs[one.job], one, moment)
                for one in found.late
                if one.attempt in late and not jobs[one.job].final and jobs[one.job].desired != _CANCEL
            ]
            await self._desk.changes.apply(connection, ends, moment)
            if late:
                await connection.execute(update(_table).values(kill_time=None).where(_table.c.kill_time <= moment))
        if ends:
            self._desk.cancelling.set()

    def _events(self, told: Iterable[tuple[Open, Marked]], jobs: Mapping[str, Job]) -> list[NewEvent]:
        sites = self._desk.sites.by_name
        events = []
        for one, row in told:
            job = jobs[row.job]
            resource = low_efficiency(row, job, one.attempt, sites.get(one.attempt.backend, ""))
            events.append(NewEvent("scheduler.job.slow", job.name, job.uid, job.origin, resource))
        return events


def _row(one: Open, window: Window, moment: datetime) -> Marked:
    kill_time = moment + window.policy.answer_time if window.policy.kills else None
    return Marked(one.attempt.uid, one.attempt.job, window.efficiency or 0.0, window.message, moment, kill_time, False)


def _ended(job: Job, slow: Marked, moment: datetime) -> Change:
    message = f"{slow.message}; nobody answered for it"
    return Change(job, moved(job, moment, job.state, Reason.REASON_LIMIT_SLOW, message, desired=_CANCEL))
