"""What is due now and then: ends that are wanted, deadlines, resources of backends, uploads that nobody needs."""

import asyncio
import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from math import inf

import grpc
from sqlalchemy import select

from khomas.api.scheduler.v1.job_spec_pb2 import Limits
from khomas.api.scheduler.v1.state_pb2 import DesiredState, JobState, Reason
from khomas.scheduler import tables
from khomas.scheduler.engine.desk import Desk, Open, now
from khomas.scheduler.engine.transcript import Operation
from khomas.scheduler.manifest import grace_seconds
from khomas.scheduler.records import Job
from khomas.scheduler.store.bulk import update_many
from khomas.scheduler.store.changes import Change, ended_job, moved

log = logging.getLogger(__name__)

_BATCH = 1000
_CANCEL_AGAIN_SECONDS = 30.0
_LOOK_SECONDS = 10.0
# Parts of their lifetime after which uploads are renewed, and after which it is tried again.
_RENEWAL, _RENEWAL_AGAIN = 1 / 2, 1 / 20


class Housekeeping:
    """Loops beside the way of the jobs."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        # When uploads were renewed, on the monotonic clock, and after which part of their lifetime they are again.
        self._renewed, self._renewal = -inf, _RENEWAL

    async def cancel(self) -> None:
        """Tell backends whose end is wanted, whenever one is."""
        while True:
            await self.cancel_step()
            await self._desk.cancelling.wait(self._desk.settings.poll.total_seconds())

    async def cancel_step(self) -> None:
        """Tell backends whose end is wanted, once."""
        query = select(tables.job).where(tables.CANCELLING)
        async with self._desk.database.read() as connection:
            jobs = {row.uid: Job._make(row) for row in (await connection.execute(query.limit(10 * _BATCH))).all()}
            if not jobs:
                return
            plans = await self._desk.blueprints.of(connection, {one.spec for one in jobs.values()})
        loop = asyncio.get_running_loop().time()
        orders: dict[tuple[str, float], list[Open]] = {}
        for one in list(self._desk.open.values()):
            job_row = jobs.get(one.attempt.job)
            handed_over = one.attempt.native_id and one.attempt.state != JobState.JOB_STATE_FINISHING
            if job_row is None or not handed_over or loop - one.cancel_sent < _CANCEL_AGAIN_SECONDS:
                continue
            grace = grace_seconds(plans[job_row.spec].spec)
            orders.setdefault((one.attempt.backend, grace), []).append(one)
        for (site, grace), some in orders.items():
            await self._order(site, grace, some)

    async def _order(self, site: str, grace: float, some: Sequence[Open]) -> None:
        ids = [one.attempt.native_id for one in some]
        if site not in self._desk.sites or self._desk.sites.lack(site) is not None:
            return  # the next look at what is to end comes soon
        uids = [one.attempt.uid for one in some]
        try:
            with self._desk.transcript.of(site, Operation.OPERATION_CANCEL, uids):
                async with asyncio.timeout(self._desk.settings.backend_deadline.total_seconds()):
                    await self._desk.sites[site].backend.cancel(ids, timedelta(seconds=grace))
        except Exception:
            log.exception("cancel.failed", extra={"backend": site, "jobs": len(ids)})
            return
        for one in some:
            one.cancel_sent = asyncio.get_running_loop().time()
        self._desk.sites[site].got_jobs.set()

    async def deadlines(self) -> None:
        """Give up jobs whose deadline has come."""
        job = tables.job
        moment = now()
        # What is to end anyway keeps its reason.
        late = (job.c.deadline <= moment, job.c.desired != DesiredState.DESIRED_STATE_CANCEL)
        query = select(job).where(*late).order_by(job.c.deadline).limit(_BATCH).with_for_update()
        async with self._desk.database.read() as connection:
            if (await connection.execute(query.limit(1))).first() is None:
                return
        async with self._desk.write() as connection:
            jobs = [Job._make(row) for row in (await connection.execute(query)).all()]
            plans = await self._desk.blueprints.of(connection, {one.spec for one in jobs})
            steps = [Change(one, _given_up(one, moment, plans[one.spec].spec.limits)) for one in jobs]
            started = [{"uid": one.after.uid, "deadline": one.after.deadline} for one in steps if not _is_step(one)]
            await update_many(connection, job, ("uid",), started)
            await self._desk.changes.apply(connection, [one for one in steps if _is_step(one)], moment)
        if jobs:
            self._desk.cancelling.set()

    async def look(self) -> None:
        """Ask backends for their resources, again and again."""
        while True:
            deadline = self._desk.settings.backend_deadline.total_seconds()
            await self._desk.sites.look(deadline, self._desk.transcript.look)
            await asyncio.sleep(_LOOK_SECONDS)

    async def renew(self) -> None:
        """Let uploads of open attempts take files for longer when half of their time may be over."""
        loop, lifetime = asyncio.get_running_loop().time(), self._desk.storage.granted.total_seconds()
        if loop < self._renewed + self._renewal * lifetime:
            return
        names = [one.attempt.upload for one in self._desk.open.values() if one.attempt.upload]
        self._renewed, self._renewal = loop, _RENEWAL
        try:
            await self._desk.storage.renew(names)
        except grpc.aio.AioRpcError as error:
            log.warning("renew.failed", extra={"uploads": len(names), "code": error.code().name})
            self._renewal = _RENEWAL_AGAIN

    async def abandon(self) -> None:
        """Give up uploads of failed attempts. Those that are missed end by themselves."""
        names, self._desk.abandoned = self._desk.abandoned, []
        if not names:
            return
        try:
            await self._desk.storage.abandon(names)
        except grpc.aio.AioRpcError as error:
            log.warning("abandon.failed", extra={"uploads": len(names), "code": error.code().name})


def _is_step(change: Change) -> bool:
    return change.after.version > change.before.version


def _given_up(job: Job, moment: datetime, limits: Limits) -> Job:
    """The job after its deadline: ended, or about to be; one that started in time has a later one, or none."""
    started = not job.waiting and job.state not in (JobState.JOB_STATE_SUBMITTING, JobState.JOB_STATE_QUEUED)
    finish = limits.finish_before.ToDatetime(UTC) if limits.HasField("finish_before") else None
    if started and (finish is None or finish > moment):
        return job._replace(deadline=finish)
    what = "finished" if finish is not None and finish <= moment else "started"
    message = f"not {what} by {(job.deadline or moment).isoformat(timespec='seconds')}"
    reason = Reason.REASON_LIMIT_DEADLINE
    if job.waiting:
        return ended_job(job, moment, JobState.JOB_STATE_FAILED, reason, message, deadline=None)
    return moved(job, moment, job.state, reason, message, desired=DesiredState.DESIRED_STATE_CANCEL, deadline=None)
