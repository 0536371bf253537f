"""Makes drafted jobs real, in a constant number of statements."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, fields
from datetime import datetime
from operator import attrgetter

from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.scheduler.v1.job_pb2 import Job as WireJob
from khomas.api.scheduler.v1.state_pb2 import JobState, Reason
from khomas.kit.database import Rows, insert_rows
from khomas.kit.events import EventLog, NewEvent
from khomas.scheduler import tables
from khomas.scheduler.errors import DependencyInvalid, SandboxNotFound
from khomas.scheduler.intake.drafts import FRESH, Draft
from khomas.scheduler.intake.sandboxes import Sandboxes
from khomas.scheduler.lifecycle.dependencies import Verdict, judge
from khomas.scheduler.lifecycle.waiting import waiting
from khomas.scheduler.messages import job_message
from khomas.scheduler.names import split
from khomas.scheduler.records import Dependency, Job
from khomas.scheduler.store.changes import Change, Changes, ended_job, lock_jobs, read_counts

_VARYING = tuple(name for name in Job._fields if name not in FRESH)
_varying = attrgetter(*_VARYING)
_DEPENDENCY = tuple(field.name for field in fields(Dependency))


class Submission:
    """Inserts drafts."""

    def __init__(self, events: EventLog, changes: Changes, sandboxes: Sandboxes) -> None:
        self._events = events
        self._changes = changes
        self._sandboxes = sandboxes

    async def submit(self, connection: AsyncConnection, drafts: Sequence[Draft]) -> dict[str, WireJob]:
        """Insert the jobs of drafts and return them by uid.

        Raises `SandboxNotFound` and `DependencyInvalid`.
        """
        if contents := {sha256 for draft in drafts for sha256 in draft.sandboxes}:
            for sha256 in await self._sandboxes.missing(connection, contents):
                raise SandboxNotFound(sha256=sha256)
        now = drafts[0].job.create_time
        dependencies, doomed = await _judged(connection, drafts)
        waits = _numbers(dependencies)
        jobs = {
            draft.job.uid: waiting(draft.job._replace(waits=waits[draft.job.uid]), now)
            if draft.job.uid in waits
            else draft.job
            for draft in drafts
        }
        await insert_rows(connection, *_rows(drafts, list(jobs.values()), dependencies))
        written = {uid: job_message(job) for uid, job in jobs.items()}
        events = [
            NewEvent("scheduler.job.created", job.name, uid, job.origin, written[uid], job.trace_id)
            for uid, job in jobs.items()
        ]
        await self._events.append(connection, events)
        await self._changes.apply(connection, _ended(jobs, doomed, now), now)
        return written


async def _judged(
    connection: AsyncConnection, drafts: Sequence[Draft]
) -> tuple[list[Dependency], dict[str, tuple[Verdict, Job]]]:
    """Dependencies that are still to be waited for, and jobs that wait in vain already."""
    own = {draft.job.uid for draft in drafts}
    wanted = [one for draft in drafts for one in draft.dependencies if not one.kept]
    # Children of arrays of the same submission too.
    own |= {one.target for one in wanted if split(one.target)[0] in own}
    others = {one.target for one in wanted} - own
    if not wanted:
        return [], {}
    targets = {job.uid: job for job in await lock_jobs(connection, others)}
    unmade = await _parents(connection, others - targets.keys())
    counts = await read_counts(connection, [uid for uid, job in targets.items() if job.is_array and job.final])
    open_ones: list[Dependency] = []
    doomed: dict[str, tuple[Verdict, Job]] = {}
    for one in wanted:
        if one.target in own or one.target in unmade:
            open_ones.append(one)
            continue
        if one.target not in targets:
            raise DependencyInvalid(job=f"jobs/{one.target}")
        target = targets[one.target]
        verdict = judge(one, target, counts.get(one.target)) if target.final else None
        if verdict is None:
            open_ones.append(one)
        elif verdict is not Verdict.KEPT:
            doomed[one.job] = (verdict, target)
    return open_ones, doomed


async def _parents(connection: AsyncConnection, children: Iterable[str]) -> set[str]:
    """Children that have no row yet but will: those of arrays that are long enough."""
    indices = {uid: uid.partition("/") for uid in children if "/" in uid}
    arrays = {job.uid: job for job in await lock_jobs(connection, {array for array, _, _ in indices.values()})}
    return {
        uid
        for uid, (array, _, index) in indices.items()
        if array in arrays and arrays[array].made <= int(index) < arrays[array].total
    }


def _numbers(dependencies: Iterable[Dependency]) -> Mapping[str, int]:
    numbers: dict[str, int] = {}
    for one in dependencies:
        numbers[one.job] = numbers.get(one.job, 0) + 1
    return numbers


def _rows(drafts: Sequence[Draft], jobs: Sequence[Job], dependencies: Sequence[Dependency]) -> list[Rows]:
    """Everything that is inserted before the events."""
    specs = [(one.job.spec, one.blueprint.spec.SerializeToString(), one.blueprint.frozen.pack()) for one in drafts]
    uses = sorted({(sha256, draft.job.spec) for draft in drafts for sha256 in draft.sandboxes})
    counts = [(job.uid, job.rest_state, job.rest_reason, job.total) for job in jobs if job.is_array]
    kept = [one for draft in drafts for one in draft.dependencies if one.kept]
    return [
        Rows(tables.spec, ("uid", "spec", "frozen"), specs),
        Rows(tables.sandbox_use, ("sha256", "spec"), uses),
        Rows(tables.job, _VARYING, [_varying(job) for job in jobs], FRESH),
        Rows(tables.count, ("parent", "state", "reason", "number"), counts),
        Rows(tables.dependency, _DEPENDENCY, [astuple(one) for one in [*dependencies, *kept]]),
    ]


def _ended(jobs: Mapping[str, Job], doomed: Mapping[str, tuple[Verdict, Job]], now: datetime) -> list[Change]:
    changes = []
    for uid, (verdict, target) in doomed.items():
        failed = verdict is Verdict.FAILS
        state = JobState.JOB_STATE_FAILED if failed else JobState.JOB_STATE_CANCELLED
        reason = Reason.REASON_DEPENDENCY_FAILED if failed else Reason.REASON_SUPERSEDED
        message = f"{target.name} had ended before: {target.message or 'as it was not to'}"
        changes.append(Change(jobs[uid], ended_job(jobs[uid], now, state, reason, message)))
    return changes
