"""What of a workflow has to run again after a failure, and what took the place of what."""

import math
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from sqlalchemy import or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.scheduler.v1.state_pb2 import JobState, Reason
from khomas.kit.database import in_values
from khomas.scheduler import tables
from khomas.scheduler.records import Counts, Dependency, Job
from khomas.scheduler.store.changes import child_of, read_jobs

_dependency, _rescue, _job = tables.dependency.c, tables.rescue.c, tables.job.c
# Dependencies on children of more arrays than this are looked for in several statements.
_ARRAYS = 200
_Step = Callable[[AsyncConnection, Sequence[str]], Awaitable[list[str]]]


def in_vain(job: Job) -> bool:
    """Whether it never ran because of others."""
    return job.state == JobState.JOB_STATE_FAILED and job.reason == Reason.REASON_DEPENDENCY_FAILED


async def newest(connection: AsyncConnection, uids: Iterable[str]) -> list[str]:
    """The jobs that stand for these by now: themselves, or what took their places last."""
    found = {uid: uid for uid in uids}
    while True:
        query = select(_rescue.original, _rescue.job).where(in_values(_rescue.original, set(found.values())))
        later: dict[str, str] = {}
        for original, job in (await connection.execute(query)).all():
            later[original] = max(job, later.get(original, ""))
        if not later:
            return list(dict.fromkeys(found.values()))
        found = {uid: later.get(last, last) for uid, last in found.items()}


async def lineage(connection: AsyncConnection, uid: str) -> list[str]:
    """A job or array and all that took its place, oldest first."""
    known, fresh = [uid], [uid]
    while fresh:
        query = select(_rescue.job).where(in_values(_rescue.original, fresh)).order_by(_rescue.job)
        fresh = list((await connection.execute(query)).scalars())
        known += fresh
    return known


async def affected(connection: AsyncConnection, uids: Collection[str]) -> list[str]:
    """These jobs, what they waited for in vain, and everything that waited in vain for any of those."""
    known = dict.fromkeys(uids)
    await _grow(connection, known, _causes)
    await _grow(connection, known, _victims)
    return list(known)


async def dependencies_of(connection: AsyncConnection, uids: Collection[str]) -> dict[str, list[Dependency]]:
    """What jobs wait or waited for."""
    found: dict[str, list[Dependency]] = {uid: [] for uid in uids}
    for row in (await connection.execute(select(tables.dependency).where(in_values(_dependency.job, uids)))).all():
        found[row.job].append(Dependency(*row))
    return found


def carried_over(
    new: str,
    dependencies: Iterable[Dependency],
    places: Mapping[str, str],
    sizes: Mapping[str, int],
    counts: Mapping[str, Counts],
) -> list[Dependency]:
    """The dependencies of a job that takes the place of another: what was kept is not asked for again.

    `places`: what took the place of which; `sizes`: of the new arrays; `counts`: of the old ones.
    """
    carried = []
    for one in dependencies:
        # What was kept, or took another's place, is waited for no more but may be read.
        carried.append(replace(one, job=new, kept=True))
        if one.target in places:
            place = places[one.target]
            fraction = _fraction(one.min_fraction, counts.get(one.target), sizes.get(place, 1))
            carried.append(replace(one, job=new, target=place, min_fraction=fraction, kept=False))
        elif not one.kept:
            carried[-1] = replace(one, job=new)
    return carried


def _fraction(wanted: float, counts: Counts | None, size: int) -> float:
    """Which part of the new array has to succeed for the wanted part of the whole."""
    if not wanted or counts is None:
        return wanted
    missing = math.ceil(wanted * counts.total - 1e-9) - counts.of(JobState.JOB_STATE_SUCCEEDED)
    return min(1.0, max(1, missing) / size)


async def _grow(connection: AsyncConnection, known: dict[str, None], step: _Step) -> None:
    fresh: Sequence[str] = list(known)
    while fresh:
        fresh = [uid for uid in await step(connection, fresh) if uid not in known]
        known |= dict.fromkeys(fresh)


async def _causes(connection: AsyncConnection, uids: Sequence[str]) -> list[str]:
    """What these jobs waited for that ended badly."""
    vain = [job.uid for job in await read_jobs(connection, uids) if in_vain(job)]
    query = select(_dependency.target).where(in_values(_dependency.job, vain), _dependency.kept.is_(False))
    targets = set((await connection.execute(query)).scalars())
    bad = (JobState.JOB_STATE_FAILED, JobState.JOB_STATE_CANCELLED)
    return [job.uid for job in await read_jobs(connection, targets) if job.state in bad]


async def _victims(connection: AsyncConnection, uids: Sequence[str]) -> list[str]:
    """What waited in vain for these jobs, or for children of these arrays."""
    waiters: set[str] = set()
    for start in range(0, len(uids), _ARRAYS):
        some = uids[start : start + _ARRAYS]
        below = [child_of(_dependency.target, uid) for uid in some]
        query = select(_dependency.job).where(or_(in_values(_dependency.target, some), *below))
        waiters |= set((await connection.execute(query)).scalars())
    return [job.uid for job in await read_jobs(connection, waiters) if in_vain(job)]
