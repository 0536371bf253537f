"""Attempts of which it is not known whether they arrived: looked for by their token before anything else."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime

from khomas.api.scheduler.v1.state_pb2 import DesiredState, JobState, Reason
from khomas.scheduler import tables
from khomas.scheduler.engine.candidates import Candidate
from khomas.scheduler.engine.desk import Desk, now
from khomas.scheduler.engine.failing import after_failures, why
from khomas.scheduler.engine.parts import in_parts
from khomas.scheduler.engine.preparation import Preparation, Prepared
from khomas.scheduler.engine.transcript import Operation
from khomas.scheduler.placement.sites import Site
from khomas.scheduler.records import Attempt, Job, uid_of_token
from khomas.scheduler.store.bulk import update_many
from khomas.scheduler.store.changes import Change, lock_jobs, moved

log = logging.getLogger(__name__)

# A batch system may show late what it took: it must be missing so often before it is handed over again.
NOT_FOUND_TIMES = 2


class Doubtful:
    """Looks for attempts, and hands over again what certainly did not arrive."""

    def __init__(
        self, desk: Desk, preparation: Preparation, hand_over: Callable[[Sequence[Prepared]], Awaitable[None]]
    ) -> None:
        self._desk = desk
        self._preparation = preparation
        self._hand_over = hand_over
        self._pause = desk.settings.find_pause.total_seconds()

    async def step(self) -> bool:
        """Ask backends for attempts of which it is not known whether they arrived."""
        loop = asyncio.get_running_loop().time()
        doubtful: dict[str, list[Attempt]] = {}
        for one in list(self._desk.open.values()):
            if one.attempt.state == JobState.JOB_STATE_SUBMITTING and 0 < one.find_at <= loop:
                doubtful.setdefault(one.attempt.backend, []).append(one.attempt)
        # Who is not let in finds nothing, and what is not found is handed over again.
        asked = [name for name in doubtful if name in self._desk.sites and self._desk.sites.lack(name) is None]
        for name in asked:
            await self._find_at(self._desk.sites[name], doubtful[name])
        return bool(asked)

    async def _find_at(self, site: Site, attempts: Sequence[Attempt]) -> None:
        loop = asyncio.get_running_loop().time()
        doubtful = [one for one in attempts if self._desk.open[one.uid].not_found < NOT_FOUND_TIMES]
        uids = [attempt.uid for attempt in doubtful]
        try:
            with self._desk.transcript.of(site.name, Operation.OPERATION_FIND, uids):
                async with asyncio.timeout(self._desk.settings.backend_deadline.total_seconds()):
                    known = await site.backend.find([attempt.token for attempt in doubtful]) if doubtful else {}
        except Exception:
            log.exception("find.failed", extra={"backend": site.name, "jobs": len(doubtful)})
            for attempt in attempts:
                self._desk.open[attempt.uid].find_at = loop + self._pause
            return
        again = []
        for attempt in attempts:
            one = self._desk.open[attempt.uid]
            one.find_at = loop + self._pause
            one.not_found += attempt.token not in known
            if one.not_found >= NOT_FOUND_TIMES:
                again.append(attempt)
        if known:
            found = [(uid_of_token(token), native) for token, native in known.items()]
            await in_parts(self._arrived, found, lambda pair: pair[0])
        if again:
            await self._once_more(again)

    async def _arrived(self, found: Sequence[tuple[str, str]]) -> None:
        natives, moment = dict(found), now()
        attempts = {self._desk.open[uid].attempt.job: self._desk.open[uid].attempt for uid in natives}
        async with self._desk.write() as connection:
            changes = [
                accepted(job, attempts[job.uid], natives[attempts[job.uid].uid], moment)
                for job in await lock_jobs(connection, attempts)
            ]
            await self._desk.changes.apply(connection, changes, moment)
        for change in changes:
            if change.attempt is not None:
                self._desk.opened(change.attempt)
        for attempt in attempts.values():
            self._desk.sites[attempt.backend].got_jobs.set()

    async def _once_more(self, attempts: Sequence[Attempt]) -> None:
        """Hand over again what certainly did not arrive, under the same token."""
        prepared: list[Prepared] = []

        async def get_ready(some: Sequence[tuple[Candidate, Attempt]]) -> None:
            prepared.extend(await self._ready_again(some))

        if wanted := await self._still_wanted(attempts):
            await in_parts(get_ready, wanted, lambda pair: pair[1].uid)
        await self._hand_over(prepared)

    async def _still_wanted(self, attempts: Sequence[Attempt]) -> list[tuple[Candidate, Attempt]]:
        """Those whose jobs are not to end; the others have ended."""
        moment = now()
        by_job = {attempt.job: attempt for attempt in attempts}
        async with self._desk.write() as connection:
            jobs = [
                job for job in await lock_jobs(connection, by_job) if job.desired != DesiredState.DESIRED_STATE_CANCEL
            ]
            gone = by_job.keys() - {job.uid for job in jobs}
            ended = [_never_arrived(by_job[uid], moment) for uid in gone]
            changes = await after_failures(connection, self._desk, ended, moment)
            await self._desk.changes.apply(connection, changes, moment)
            plans = await self._desk.blueprints.of(connection, {job.spec for job in jobs})
        for attempt in ended:
            self._desk.closed(attempt)
        return [(Candidate(job, plans[job.spec]), by_job[job.uid]) for job in jobs]

    async def _ready_again(self, wanted: Sequence[tuple[Candidate, Attempt]]) -> list[Prepared]:
        """Those that can be handed over now; the others are tried again after a pause."""
        attempts = [attempt for _, attempt in wanted]
        async with self._desk.database.read() as connection:
            candidates = [candidate for candidate, _ in wanted]
            prepared, _ = await self._preparation.prepare_again(connection, candidates, attempts, now())
        rows = [{"uid": one.attempt.uid, "upload": one.attempt.upload} for one in prepared if one.attempt.upload]
        if rows:
            async with self._desk.write() as connection:
                await update_many(connection, tables.attempt, ("uid",), rows)
            self._desk.abandoned += [attempt.upload for attempt in attempts if attempt.upload]
        return prepared


def accepted(job: Job, attempt: Attempt, native_id: str, moment: datetime) -> Change:
    """The step of a job whose attempt the backend has."""
    state = JobState.JOB_STATE_QUEUED
    accepted = attempt._replace(
        state=state, native_id=native_id, submit_time=moment, reason=Reason.REASON_UNSPECIFIED, message=""
    )
    return Change(job, moved(job, moment, state, *why(job)), accepted)


def _never_arrived(attempt: Attempt, moment: datetime) -> Attempt:
    return attempt._replace(
        state=JobState.JOB_STATE_CANCELLED,
        reason=Reason.REASON_USER_CANCELLED,
        message="cancelled before the backend had it",
        end_time=moment,
    )
