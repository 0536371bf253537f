"""Whose turn it is: due jobs, and children of arrays that get their rows now."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.scheduler.v1.state_pb2 import JobState
from khomas.scheduler import tables
from khomas.scheduler.blueprint import Blueprint
from khomas.scheduler.errors import ExpressionInvalid
from khomas.scheduler.intake import child_job
from khomas.scheduler.records import Counts, Job
from khomas.scheduler.store.blueprints import Blueprints
from khomas.scheduler.store.changes import read_counts, read_jobs

_ACTIVE = range(JobState.JOB_STATE_SUBMITTING, JobState.JOB_STATE_STALLED + 1)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A job whose turn it is."""

    job: Job
    blueprint: Blueprint
    # It has no row yet.
    new: bool = False
    # Its array has enough running already.
    throttled: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """Whose turn it is, and the arrays that new children are of, with how many get a row."""

    candidates: Sequence[Candidate]
    pages: Mapping[str, tuple[Job, int]]


async def whose_turn(connection: AsyncConnection, blueprints: Blueprints, now: datetime, room: int) -> Turn:
    """Read up to so many jobs, the highest priority first, then who waits longest."""
    table = tables.job
    query = select(table).where(table.c.due <= now).order_by(table.c.priority.desc(), table.c.due, table.c.uid)
    due = [Job(*row) for row in (await connection.execute(query.limit(room))).all()]
    if not due:
        return Turn((), {})
    plans = await blueprints.of(connection, {job.spec for job in due})
    running = await _running(connection, due)
    candidates: list[Candidate] = []
    pages: dict[str, tuple[Job, int]] = {}
    for job in due:
        if len(candidates) >= room:
            break
        if not job.is_array:
            throttled = job.parent in running and _take(running, job.parent, 1) == 0
            candidates.append(Candidate(job, plans[job.spec], throttled=throttled))
            continue
        number = _take(running, job.uid, min(job.unmade, room - len(candidates)))
        if number:
            pages[job.uid] = (job, number)
            candidates += children(job, plans[job.spec], job.made, job.made + number)
    return Turn(candidates, pages)


def children(array: Job, blueprint: Blueprint, first: int, end: int) -> list[Candidate]:
    """The children with these indices, as they get their rows."""
    return [
        Candidate(child_job(array, index, _parameters(blueprint, index)), blueprint, new=True)
        for index in range(first, end)
    ]


def _parameters(blueprint: Blueprint, index: int) -> dict[str, str]:
    try:
        return blueprint.parameters(index)
    except ExpressionInvalid:
        return {}  # the child itself fails with it, when it is to run


async def _running(connection: AsyncConnection, due: Sequence[Job]) -> dict[str, int]:
    """How many more children of arrays with `max_running` may run, by array."""
    arrays = {job.uid: job for job in due if job.is_array}
    missing = {job.parent for job in due if job.parent} - arrays.keys()
    arrays |= {job.uid: job for job in await read_jobs(connection, missing)}
    limited = {uid: job.max_running for uid, job in arrays.items() if job.max_running}
    if not limited:
        return {}
    counts: Mapping[str, Counts] = await read_counts(connection, limited)
    return {uid: most - counts[uid].of(*_ACTIVE) for uid, most in limited.items()}


def _take(room: dict[str, int], array: str, wanted: int) -> int:
    if array not in room:
        return wanted
    taken = max(0, min(wanted, room[array]))
    room[array] -= taken
    return taken
