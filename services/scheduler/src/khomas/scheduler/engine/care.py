"""Looks after backends: writes down how they do, bans those that do badly, tries them out with test jobs."""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import update

from khomas.api.scheduler.v1.state_pb2 import DesiredState, JobState, Reason
from khomas.kit.events import EventLog
from khomas.kit.ids import new_uids
from khomas.scheduler import tables
from khomas.scheduler.engine.desk import Desk, now
from khomas.scheduler.intake.blueprint import Blueprint
from khomas.scheduler.intake.drafts import Draft, new_job
from khomas.scheduler.intake.frozen import Frozen
from khomas.scheduler.intake.profiles import Used, kind_of_jobs, uses
from khomas.scheduler.placement.closing import read_into, tell
from khomas.scheduler.placement.robot import ROBOT, test_spec
from khomas.scheduler.placement.sites import Site
from khomas.scheduler.placement.standing import Standing, Status, after_probe, brought_to_end, judged
from khomas.scheduler.ranking.interface import span
from khomas.scheduler.records import Attempt, Job
from khomas.scheduler.store.changes import Change, ended_job, lock_jobs, moved, read_jobs
from khomas.scheduler.store.profiles import write_uses
from khomas.scheduler.store.standings import write_standing, write_tallies
from khomas.scheduler.store.submission import Submission

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Test:
    """A test job that has not ended."""

    backend: str
    job: str
    began: datetime


@dataclass(slots=True)
class Care:
    """Looks after all backends."""

    desk: Desk
    # Test jobs that have not ended, by backend, and when the last one was sent.
    _tests: dict[str, _Test] = field(default_factory=dict)
    _sent: dict[str, datetime] = field(default_factory=dict)
    # Backends and their queues that were open at the last look.
    _open: frozenset[tuple[str, str]] = frozenset()

    @property
    def _events(self) -> EventLog:
        return self.desk.changes.events

    async def step(self) -> None:
        """Learn from what ended, decide, and send test jobs that are due."""
        await self._learn()
        async with self.desk.sites.deciding:
            async with self.desk.database.read() as connection:
                await read_into(connection, self.desk.sites)
            moment = now()
            for site in self.desk.sites:
                rules, probed = self.desk.settings.bans, self._tested(site)
                await self._decide(site, judged(site.standing, site.reputation, rules, probed, moment))
        await self._wake(moment)
        await self._test(moment)

    async def _wake(self, moment: datetime) -> None:
        """Let jobs be looked at again that wait for a backend or a queue which was opened, by whomever."""
        good = [site for site in self.desk.sites if site.standing.status == Status.PRODUCTION]
        queues = {(site.name, one.queue) for site in good for one in site.resources if not one.closed}
        now_open = frozenset({(site.name, "") for site in good} | queues)
        if now_open - self._open:
            job = tables.job.c
            reasons = (Reason.REASON_WAIT_BACKEND, Reason.REASON_WAIT_RESOURCES)
            waits = job.reason.in_(reasons) & job.due.is_not(None) & (job.due > moment)
            async with self.desk.write() as connection:
                await connection.execute(update(tables.job).where(waits).values(due=moment))
            self.desk.due.set()
        self._open = now_open

    async def _learn(self) -> None:
        """Write down what attempts that ended tell: about their backends, and what their kind of jobs uses."""
        ended, self.desk.ended = self.desk.ended, []
        ended = [attempt for attempt in ended if attempt.backend in self.desk.sites]
        jobs, used = await self._known(ended)
        for attempt in ended:
            job = jobs.get(attempt.job)
            if job is not None and job.owner == ROBOT:
                await self._tested_by(attempt, job)
            else:
                self.desk.sites[attempt.backend].reputation.ended(brought_to_end(attempt))
        news = {site.name: dict(site.reputation.news) for site in self.desk.sites if site.reputation.news}
        if not news and not used:
            return
        async with self.desk.write() as connection:
            await write_tallies(connection, news)
            await write_uses(connection, used)
        for name, some in news.items():
            self.desk.sites[name].reputation.news -= Counter(some)  # more may have come meanwhile

    async def _known(self, ended: list[Attempt]) -> tuple[Mapping[str, Job], list[Used]]:
        if not ended:
            return {}, []
        async with self.desk.database.read() as connection:
            jobs = {job.uid: job for job in await read_jobs(connection, [attempt.job for attempt in ended])}
            plans = await self.desk.blueprints.of(connection, {job.spec for job in jobs.values()})
        kinds = {uid: kind_of_jobs(plans[job.spec].spec) for uid, job in jobs.items() if job.owner != ROBOT}
        return jobs, uses(ended, kinds)

    async def _decide(self, site: Site, standing: Standing) -> None:
        """Write a decision down, if it is one; whoever calls it holds `sites.deciding`."""
        if standing == site.standing:
            return
        log.warning("backend.decided", extra={"backend": site.name, "said": standing.said or "open"})
        async with self.desk.write() as connection:
            await write_standing(connection, standing)
            await tell(connection, self._events, self.desk.sites, site.name)
        site.standing = standing
        site.reputation.forget()
        self.desk.due.set()

    # ------------------------------------------------------------------------------- test jobs

    def _tested(self, site: Site) -> bool:
        return self.desk.settings.test_jobs.every is not None and site.settings.test_jobs

    async def _tested_by(self, attempt: Attempt, job: Job) -> None:
        """Note what a test job came to. It runs a program that is known to work: any failure is the place's."""
        site = self.desk.sites[attempt.backend]
        if job.desired == DesiredState.DESIRED_STATE_CANCEL:
            return  # it took too long, and that was noted
        self._tests.pop(site.name, None)
        await self._answered(site, brought_to_end(attempt) is True, attempt.message)

    async def _answered(self, site: Site, good: bool, message: str) -> None:
        site.reputation.ended(good)
        async with self.desk.sites.deciding:
            if site.standing.automatic:
                await self._decide(site, after_probe(site.standing, good, message, self.desk.settings.bans, now()))

    async def _test(self, moment: datetime) -> None:
        await self._give_up(moment)
        due = [site for site in self.desk.sites if self._tested(site) and self._due(site, moment)]
        if not due:
            return
        drafts = [self._draft(site, uid, moment) for site, uid in zip(due, new_uids(len(due)), strict=True)]
        submission = Submission(self._events, self.desk.changes, self.desk.sandboxes)
        async with self.desk.write() as connection:
            await submission.submit(connection, drafts)
        for site, draft in zip(due, drafts, strict=True):
            self.desk.blueprints.keep(draft.job.uid, draft.blueprint)
            self._tests[site.name] = _Test(site.name, draft.job.uid, moment)
            self._sent[site.name] = moment
        self.desk.due.set()

    def _due(self, site: Site, moment: datetime) -> bool:
        """Every now and then; a backend that the service banned when its time has passed, one that people did never."""
        if site.name in self._tests or site.trouble or site.shut:
            return False
        if site.standing.status != Status.PRODUCTION:
            return site.standing.automatic and site.standing.over(moment)
        every, last = self.desk.settings.test_jobs.every, self._sent.get(site.name)
        return last is None or (every is not None and moment - last >= every)

    def _draft(self, site: Site, uid: str, moment: datetime) -> Draft:
        blueprint = Blueprint(test_spec(site.name, self.desk.settings.test_jobs), Frozen())
        return Draft(new_job(uid, uid, blueprint, 1, ROBOT, "", moment), blueprint, [])

    async def _give_up(self, moment: datetime) -> None:
        """Cancel test jobs that take too long: that is an answer too."""
        patience = self.desk.settings.test_jobs.patience
        late = [test for test in self._tests.values() if moment - test.began > patience]
        if not late:
            return
        async with self.desk.write() as connection:
            jobs = [job for job in await lock_jobs(connection, [test.job for test in late]) if not job.final]
            await self.desk.changes.apply(connection, [Change(job, _given_up(job, moment)) for job in jobs], moment)
        for test in late:
            del self._tests[test.backend]
            await self._answered(self.desk.sites[test.backend], False, f"it did not end within {span(patience)}")
        self.desk.cancelling.set()


def _given_up(job: Job, moment: datetime) -> Job:
    message = "the test job took too long"
    if job.waiting:
        return ended_job(job, moment, JobState.JOB_STATE_CANCELLED, Reason.REASON_OPERATOR_CANCELLED, message)
    reason, wanted = Reason.REASON_OPERATOR_CANCELLED, DesiredState.DESIRED_STATE_CANCEL
    return moved(job, moment, job.state, reason, message, desired=wanted)
