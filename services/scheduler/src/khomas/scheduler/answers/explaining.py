"""Gathers the facts that explain a job."""

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import and_, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.common.v1.explanation_pb2 import Explanation
from khomas.api.scheduler.v1.state_pb2 import JobState
from khomas.kit.database import Database
from khomas.scheduler import tables
from khomas.scheduler.answers.explanations import Facts, explain
from khomas.scheduler.answers.logs import Logs
from khomas.scheduler.errors import JobNotFound
from khomas.scheduler.lifecycle.retry import avoided
from khomas.scheduler.messages import state_name
from khomas.scheduler.names import uid_of
from khomas.scheduler.placement.locality import Locality, inputs_of
from khomas.scheduler.placement.matching import Match, Needs, match
from khomas.scheduler.placement.sites import Sites
from khomas.scheduler.records import Attempt, Job
from khomas.scheduler.store.changes import read_attempts, read_counts
from khomas.scheduler.store.lookup import Lookup

_TAIL_BYTES, _TAIL_LINES = 4096, 10
# With the batch system, for somebody who waits for an explanation.
_PATIENCE_SECONDS = 5.0
_job = tables.job.c


@dataclass(frozen=True, slots=True)
class Explaining:
    """Explains jobs."""

    database: Database
    lookup: Lookup
    sites: Sites
    logs: Logs
    locality: Locality

    async def explain(self, name: str) -> Explanation:
        """Say why a job waits or failed. Raises `JobNotFound`."""
        uid = uid_of(name)
        async with self.database.read() as connection:
            found = await self.lookup.read(connection, [uid])
            if uid not in found:
                raise JobNotFound(name=name)
            job = found[uid]
            plan = (await self.lookup.blueprints.of(connection, {job.spec}))[job.spec]
            attempts = (await read_attempts(connection, [uid])).get(uid, [])
            counts = (await read_counts(connection, [uid]))[uid] if job.is_array else None
            dependencies = await _dependencies(connection, job)
            ahead = await _ahead(connection, job) if job.due is not None else 0
            # A merger has its array as origin, too.
            again = select(_job.uid).where(_job.origin == uid, _job.parent == "", _job.merges == "")
            names = [f"jobs/{one}" for one in (await connection.execute(again)).scalars()]
        attempt = attempts[-1] if attempts else None
        fits: Match | None = None
        if job.waiting:
            names_read = inputs_of(plan, job.index, job.parent or job.uid)
            local = (await self.locality.shares({uid: names_read} if names_read else {})).get(uid)
            avoid = avoided(plan.spec.retry, attempts).backends
            near = dict(local) if local else None
            needs = Needs.of(plan.spec, job.memory_factor, job.wall_factor, near, avoid=avoid)
            fits = match(plan.spec, needs, self.sites.offers(), self.sites.ranking)
        needed = [one.name for one in fits.fitting] if fits else [attempt.backend] if attempt and not job.final else []
        span = Needs.of(plan.spec, job.memory_factor, job.wall_factor).wall_time if job.waiting else None
        lacks = {name: lack for name in needed if (lack := self.sites.lack(name, span)) is not None}
        tail = await self._tail(attempt) if attempt and job.state == JobState.JOB_STATE_FAILED else []
        told = await self._told(attempt) if attempt and not lacks else ""
        moment = datetime.now(UTC)
        facts = Facts(job, plan.spec, moment, attempt, counts, fits, dependencies, ahead, tail, names, lacks, told)
        return explain(facts)

    async def _told(self, attempt: Attempt) -> str:
        """What the batch system says of an attempt that waits there."""
        if attempt.state != JobState.JOB_STATE_QUEUED or attempt.backend not in self.sites:
            return ""
        return await self.sites[attempt.backend].words_for(attempt.native_id, _PATIENCE_SECONDS)

    async def _tail(self, attempt: Attempt) -> list[str]:
        """Last lines of stderr, of stdout when there are none."""
        for stream in ("stderr", "stdout"):
            data = await self.logs.tail(attempt, stream, _TAIL_BYTES)
            lines = data.decode("utf-8", "replace").splitlines()
            if lines:
                return lines[-_TAIL_LINES:]
        return []


async def _dependencies(connection: AsyncConnection, job: Job) -> dict[str, str]:
    """States of the jobs that this one waits, or waited in vain, for."""
    wanted = tables.dependency.c
    query = (
        select(wanted.target, _job.state)
        .outerjoin(tables.job, _job.uid == wanted.target)
        .where(wanted.job == job.uid, wanted.kept.is_(False))
    )
    rows = (await connection.execute(query.limit(10))).all()
    return {f"jobs/{target}": "PENDING" if state is None else state_name(state) for target, state in rows}


async def _ahead(connection: AsyncConnection, job: Job) -> int:
    """How many are due before it."""
    before = or_(_job.priority > job.priority, and_(_job.priority == job.priority, _job.due < job.due))
    return (await connection.execute(select(func.count()).where(_job.due.is_not(None), before))).scalar() or 0
