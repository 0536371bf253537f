"""The one view on jobs that get on too slowly, and the answer for those that are meant to."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.api.scheduler.v1.slow_job_pb2 import SlowJob, SlowJobGroup
from khomas.api.scheduler.v1.state_pb2 import JobState, Reason
from khomas.kit.database import Database, in_values
from khomas.scheduler import tables
from khomas.scheduler.names import uids_of
from khomas.scheduler.placement.sites import Sites
from khomas.scheduler.records import Attempt, Job

_MAX_PAGE, _DEFAULT_PAGE = 10_000, 1000
# A child of an array is compared with its siblings when so many have succeeded, and is slow from so many medians on.
_SIBLINGS, _TIMES = 10, 3.0
_MOST_SIBLINGS = 10_000
_INPUT = (Reason.REASON_WAIT_INPUT_DATA, Reason.REASON_WAIT_STAGE_FROM_TAPE)
_job, _attempt, _slow = tables.job, tables.attempt, tables.slow
_JOB_COLUMNS = len(Job._fields)


@dataclass(frozen=True, slots=True)
class Marked:
    """A row of the table `slow`; the fields stand in the order of its columns."""

    attempt: str
    job: str
    efficiency: float
    message: str
    since: datetime
    kill_time: datetime | None
    kept: bool

    def values(self) -> dict[str, Any]:
        """The row."""
        return {part.name: getattr(self, part.name) for part in fields(self)}


@dataclass(frozen=True, slots=True)
class SlowJobs:
    """Answers the calls about slow jobs."""

    database: Database
    sites: Sites
    # Those that wait or run for less are not looked at.
    slow_after: timedelta

    async def page(self, request: pb.ListSlowJobsRequest) -> pb.ListSlowJobsResponse:
        """Jobs by cause, and how many there are."""
        now = datetime.now(UTC)
        async with self.database.read() as connection:
            found = [
                *await self._inefficient(connection),
                *await self._stalled(connection),
                *await self._without_input(connection, now),
                *await self._over_estimate(connection, now),
            ]
        found = [one for one in found if not request.owner or one.owner == request.owner]
        found.sort(key=lambda one: (one.cause, one.since.ToNanoseconds()))
        size = min(request.page_size or _DEFAULT_PAGE, _MAX_PAGE)
        return pb.ListSlowJobsResponse(jobs=found[:size], groups=grouped(found))

    async def keep(self, connection: AsyncConnection, names: Sequence[str]) -> pb.KeepSlowJobsResponse:
        """Let slow jobs run on."""
        uids = uids_of(names)
        change = update(_slow).values(kept=True, kill_time=None)
        done = await connection.execute(change.where(in_values(_slow.c.job, uids), _slow.c.kept.is_(False)))
        return pb.KeepSlowJobsResponse(kept=done.rowcount, unchanged=len(uids) - done.rowcount)

    async def _inefficient(self, connection: AsyncConnection) -> list[SlowJob]:
        query = select(_slow, _job, _attempt).join(_job, _job.c.uid == _slow.c.job)
        query = query.join(_attempt, _attempt.c.uid == _slow.c.attempt).where(_attempt.c.end_time.is_(None))
        width = len(_slow.c)
        return [
            low_efficiency(Marked(*row[:width]), job, attempt, self.sites.by_name.get(attempt.backend, ""))
            for row in (await connection.execute(query)).all()
            for job, attempt in [_split(row[width:])]
        ]

    async def _stalled(self, connection: AsyncConnection) -> list[SlowJob]:
        return [
            self._written(SlowJob.CAUSE_STALLED, job, job.message, job.since, attempt)
            for job, attempt in await _open(connection, JobState.JOB_STATE_STALLED)
        ]

    async def _without_input(self, connection: AsyncConnection, now: datetime) -> list[SlowJob]:
        waits = (_job.c.due.is_not(None), _job.c.reason.in_(_INPUT), _job.c.since <= now - self.slow_after)
        rows = (await connection.execute(select(_job).where(*waits))).all()
        cause = SlowJob.CAUSE_WAITS_FOR_INPUT
        return [self._written(cause, job, job.message, job.since) for job in (Job._make(row) for row in rows)]

    async def _over_estimate(self, connection: AsyncConnection, now: datetime) -> list[SlowJob]:
        long = [
            (job, attempt, now - attempt.start_time)
            for job, attempt in await _open(connection, JobState.JOB_STATE_RUNNING)
            if job.parent and attempt.start_time and now - attempt.start_time > self.slow_after
        ]
        usual = await _usual_times(connection, {job.parent for job, _, _ in long})
        return [
            self._written(SlowJob.CAUSE_OVER_ESTIMATE, job, said, attempt.start_time or now, attempt)
            for job, attempt, elapsed in long
            if job.parent in usual and (said := over_estimate(elapsed, usual[job.parent]))
        ]

    def _written(
        self, cause: SlowJob.Cause.ValueType, job: Job, message: str, since: datetime, attempt: Attempt | None = None
    ) -> SlowJob:
        return slow_message(cause, job, message, since, attempt, self.sites.by_name)


def over_estimate(elapsed: timedelta, siblings: Sequence[float]) -> str:
    """Say how much longer it runs than its siblings did; empty when that is nothing unusual."""
    if len(siblings) < _SIBLINGS or elapsed.total_seconds() <= _TIMES * (usual := median(siblings)):
        return ""
    seconds = elapsed.total_seconds()
    return f"has run {seconds:.0f} s, {len(siblings)} others of its array took {usual:.0f} s (median)"


def low_efficiency(marked: Marked, job: Job, attempt: Attempt, site: str) -> SlowJob:
    """Write a job whose CPU efficiency is too low."""
    cause = SlowJob.CAUSE_LOW_EFFICIENCY
    written = slow_message(cause, job, marked.message, marked.since, attempt, {attempt.backend: site})
    written.cpu_efficiency = marked.efficiency
    written.kept = marked.kept
    if marked.kill_time is not None:
        written.kill_time.FromDatetime(marked.kill_time)
    return written


def slow_message(
    cause: SlowJob.Cause.ValueType,
    job: Job,
    message: str,
    since: datetime,
    attempt: Attempt | None,
    sites: Mapping[str, str],
) -> SlowJob:
    """Write a slow job."""
    written = SlowJob(job=job.name, display_name=job.display_name, owner=job.owner, cause=cause, message=message)
    written.since.FromDatetime(since)
    if attempt is not None:
        written.backend, written.node = attempt.backend, attempt.node
        written.site = sites.get(attempt.backend, "")
    return written


def grouped(jobs: Iterable[SlowJob]) -> list[SlowJobGroup]:
    """Count jobs by cause, owner and site."""
    groups: dict[tuple[int, str, str], SlowJobGroup] = {}
    for one in jobs:
        empty = SlowJobGroup(cause=one.cause, owner=one.owner, site=one.site, since=one.since)
        group = groups.setdefault((one.cause, one.owner, one.site), empty)
        group.jobs += 1
        if one.since.ToNanoseconds() < group.since.ToNanoseconds():
            group.since.CopyFrom(one.since)
    return sorted(groups.values(), key=lambda group: (-group.jobs, group.cause, group.owner, group.site))


async def _open(connection: AsyncConnection, state: JobState.ValueType) -> list[tuple[Job, Attempt]]:
    query = select(_job, _attempt).join(_attempt, _attempt.c.job == _job.c.uid)
    query = query.where(_attempt.c.end_time.is_(None), _attempt.c.state == state)
    return [_split(row) for row in (await connection.execute(query)).all()]


def _split(row: Sequence[Any]) -> tuple[Job, Attempt]:
    return Job._make(row[:_JOB_COLUMNS]), Attempt._make(row[_JOB_COLUMNS:])


async def _usual_times(connection: AsyncConnection, arrays: Iterable[str]) -> dict[str, list[float]]:
    """Seconds that children of arrays took which succeeded."""
    wanted = list(arrays)
    if not wanted:
        return {}
    query = select(_job.c.parent, _attempt.c.start_time, _attempt.c.end_time)
    query = query.join(_attempt, _attempt.c.job == _job.c.uid)
    query = query.where(in_values(_job.c.parent, wanted), _attempt.c.state == JobState.JOB_STATE_SUCCEEDED)
    times: dict[str, list[float]] = {}
    for parent, start, end in (await connection.execute(query.limit(_MOST_SIBLINGS))).all():
        if start is not None:
            times.setdefault(parent, []).append((end - start).total_seconds())
    return times
