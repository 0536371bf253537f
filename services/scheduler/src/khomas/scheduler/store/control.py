"""What people want of jobs: to end, to wait, to go on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.api.scheduler.v1.state_pb2 import DesiredState, JobState, Reason
from khomas.kit.database import in_values
from khomas.scheduler import tables
from khomas.scheduler.lifecycle.waiting import waiting
from khomas.scheduler.names import uids_of
from khomas.scheduler.records import FINAL, Desired, Job
from khomas.scheduler.store.changes import Change, Changes, moved, read_counts
from khomas.scheduler.store.lookup import Lookup

_HOLD, _RUN, _CANCEL = (
    DesiredState.DESIRED_STATE_HOLD,
    DesiredState.DESIRED_STATE_RUN,
    DesiredState.DESIRED_STATE_CANCEL,
)


@dataclass(frozen=True, slots=True)
class Control:
    """Carries out orders about jobs."""

    lookup: Lookup
    changes: Changes

    async def cancel(
        self, connection: AsyncConnection, names: Sequence[str], reason: str
    ) -> pb.BatchCancelJobsResponse:
        """End waiting jobs, and note that the others are to end."""
        now = datetime.now(UTC)
        jobs = await self._with_children(connection, names)
        message = f"cancelled: {reason}" if reason else "cancelled"
        answer = pb.BatchCancelJobsResponse(already_final=await self._ended_children(connection, jobs))
        steps = []
        for job in jobs:
            if job.is_array:
                if not job.final:
                    steps.append(Change(job, _array_cancelled(job, message, now)))
                answer.cancelled += job.unmade if job.rest_state not in FINAL else 0
            elif job.final:
                answer.already_final += 1
            elif job.waiting:
                reason_code = Reason.REASON_USER_CANCELLED
                after = moved(job, now, JobState.JOB_STATE_CANCELLED, reason_code, message, desired=_CANCEL)
                steps.append(Change(job, after))
                answer.cancelled += 1
            else:
                # Once its end is wanted it stays so, for the reason that was given first.
                if job.desired != _CANCEL:
                    steps.append(Change(job, moved(job, now, job.state, job.reason, message, desired=_CANCEL)))
                answer.cancelling += 1
        await self.changes.apply(connection, steps, now)
        return answer

    async def hold(self, connection: AsyncConnection, names: Sequence[str]) -> pb.BatchHoldJobsResponse:
        """Keep waiting jobs from starting."""
        held, unchanged = await self._want(connection, names, _RUN, _HOLD)
        return pb.BatchHoldJobsResponse(held=held, unchanged=unchanged)

    async def release(self, connection: AsyncConnection, names: Sequence[str]) -> pb.BatchReleaseJobsResponse:
        """Let held jobs go on."""
        released, unchanged = await self._want(connection, names, _HOLD, _RUN)
        return pb.BatchReleaseJobsResponse(released=released, unchanged=unchanged)

    async def _want(
        self, connection: AsyncConnection, names: Sequence[str], before: Desired, after: Desired
    ) -> tuple[int, int]:
        now = datetime.now(UTC)
        jobs = await self._with_children(connection, names)
        changed, unchanged = 0, await self._ended_children(connection, jobs)
        steps = []
        for job in jobs:
            applies = job.desired == before and not job.final and (job.is_array or job.waiting)
            if applies:
                steps.append(Change(job, _wanted(job, after, now)))
            number = job.unmade if job.is_array else 1
            changed += number if applies else 0
            unchanged += 0 if applies else number
        await self.changes.apply(connection, steps, now)
        return changed, unchanged

    async def _with_children(self, connection: AsyncConnection, names: Sequence[str]) -> list[Job]:
        """The jobs, and of arrays the children that have rows and have not ended."""
        jobs = await self.lookup.lock(connection, uids_of(names))
        arrays = [job.uid for job in jobs.values() if job.is_array and not job.final]
        if arrays:
            table = tables.job
            query = select(table).where(in_values(table.c.parent, arrays), table.c.end_time.is_(None))
            rows = await connection.execute(query.order_by(table.c.uid).with_for_update())
            jobs |= {row.uid: Job._make(row) for row in rows.all()}
        return list(jobs.values())

    async def _ended_children(self, connection: AsyncConnection, jobs: Iterable[Job]) -> int:
        arrays = [job.uid for job in jobs if job.is_array]
        if not arrays:
            return 0
        counts = await read_counts(connection, arrays)
        return sum(count.of(*FINAL) for count in counts.values())


def _array_cancelled(array: Job, message: str, now: datetime) -> Job:
    """The array, and with it all children without a row, after its end was wanted."""
    after = moved(array, now, array.state, array.reason, message, desired=_CANCEL)
    if not array.unmade:
        return after
    return after._replace(rest_state=JobState.JOB_STATE_CANCELLED, rest_reason=Reason.REASON_USER_CANCELLED)


def _wanted(job: Job, desired: Desired, now: datetime) -> Job:
    return waiting(job._replace(desired=desired, version=job.version + 1, update_time=now, since=now), now)
