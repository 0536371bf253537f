"""Attempts at backends that the configuration does not have any more: nobody can ask for them."""

from datetime import datetime

from sqlalchemy import select

from khomas.api.scheduler.v1.state_pb2 import DesiredState, JobState, Reason
from khomas.scheduler import tables
from khomas.scheduler.engine.desk import Desk, now
from khomas.scheduler.engine.failing import after_failures
from khomas.scheduler.records import Attempt, Job
from khomas.scheduler.store.changes import Change, lock_jobs, moved

_CANCEL = DesiredState.DESIRED_STATE_CANCEL
_SUBMITTING, _STALLED = JobState.JOB_STATE_SUBMITTING, JobState.JOB_STATE_STALLED


class Strays:
    """Says that nothing is known of them, and ends those that are to end; the others wait for their backend."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def step(self) -> None:
        """Look at all of them."""
        moment = now()
        # The files of those that are FINISHING are waited for elsewhere.
        strays = [self._desk.open[uid].attempt for uid in self._desk.strays]
        attempts = {one.job: one for one in strays if one.state != JobState.JOB_STATE_FINISHING}
        stalled = {one.job: after for one in attempts.values() if (after := _stalled(one)) != one}
        ending = await self._ending() & attempts.keys() if attempts else set()
        if not stalled and not ending:
            return
        async with self._desk.write() as connection:
            jobs = await lock_jobs(connection, stalled.keys() | ending)
            ended = [gone(attempts[job.uid], moment) for job in jobs if job.desired == _CANCEL]
            changes = [_step(job, stalled[job.uid], moment) for job in jobs if job.desired != _CANCEL]
            failed = await after_failures(connection, self._desk, ended, moment)
            await self._desk.changes.apply(connection, [*changes, *failed], moment)
        for job in jobs:
            if job.desired != _CANCEL:
                self._desk.opened(stalled[job.uid])
        for attempt in ended:
            self._desk.closed(attempt)

    async def _ending(self) -> set[str]:
        """Jobs whose end is wanted."""
        async with self._desk.database.read() as connection:
            return set((await connection.execute(select(tables.job.c.uid).where(tables.CANCELLING))).scalars())


def _step(job: Job, attempt: Attempt, moment: datetime) -> Change:
    return Change(job, moved(job, moment, attempt.state, attempt.reason, attempt.message), attempt)


def gone(attempt: Attempt, moment: datetime) -> Attempt:
    """The attempt after its end was wanted, which its backend cannot be told."""
    return attempt._replace(
        state=JobState.JOB_STATE_CANCELLED,
        reason=Reason.REASON_USER_CANCELLED,
        message=f"{attempt.backend}, which is not configured any more, may still have it",
        end_time=moment,
    )


def _stalled(attempt: Attempt) -> Attempt:
    """What may not have arrived stays SUBMITTING: it is looked for when the backend is back."""
    said = f"{attempt.backend} is not configured any more: configure it again, or cancel the job"
    if attempt.state == _SUBMITTING:
        return attempt._replace(reason=Reason.REASON_INFRA_SUBMIT_UNKNOWN, message=said)
    return attempt._replace(state=_STALLED, reason=Reason.REASON_INFRA_HEARTBEAT_LOST, message=said)
