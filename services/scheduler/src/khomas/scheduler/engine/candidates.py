"""Whose turn it is: due jobs, and children of arrays that get their rows now."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.scheduler.errors import ExpressionInvalid
from khomas.scheduler.intake.blueprint import Blueprint
from khomas.scheduler.intake.drafts import child_job
from khomas.scheduler.placement.shares import Allotment, allot
from khomas.scheduler.records import ACTIVE, Counts, Job
from khomas.scheduler.store.accounting import Accounting
from khomas.scheduler.store.blueprints import Blueprints
from khomas.scheduler.store.changes import read_counts, read_jobs
from khomas.scheduler.store.line import first_in_line, first_of_each


@dataclass(frozen=True, slots=True)
class Candidate:
    """A job whose turn it is."""

    job: Job
    blueprint: Blueprint
    # It has no row yet.
    new: bool = False
    # Its array has enough running already.
    throttled: bool = False
    # Why its account may start no more now.
    over_quota: str = ""


@dataclass(frozen=True, slots=True)
class Room:
    """How many more jobs backends take, and how many they take in all."""

    free: int
    capacity: int


@dataclass(frozen=True, slots=True)
class Turn:
    """Whose turn it is, and the arrays that new children are of, with how many get a row."""

    candidates: Sequence[Candidate]
    pages: Mapping[str, tuple[Job, int]]


async def whose_turn(
    connection: AsyncConnection, blueprints: Blueprints, accounting: Accounting, now: datetime, room: Room
) -> Turn:
    """Read up to so many jobs: by their accounts; in each the highest priority first, then who waits longest."""
    due = await _due(connection, accounting, now, room.free)
    if not due:
        return Turn((), {})
    plans = await blueprints.of(connection, {job.spec for job in due})
    running = await _running(connection, due)
    allotment = await _allotted(connection, accounting, due, running, room)
    left = dict(allotment.given)
    candidates: list[Candidate] = []
    pages: dict[str, tuple[Job, int]] = {}
    for job in due:
        account = job.share if accounting.tree else ""
        if not left.get(account):
            if why := allotment.over_quota.get(account, ""):
                candidates.append(Candidate(job, plans[job.spec], over_quota=why))
            continue
        if not job.is_array:
            number = 1
            throttled = job.parent in running and _take(running, job.parent, 1) == 0
            candidates.append(Candidate(job, plans[job.spec], throttled=throttled))
        elif number := _take(running, job.uid, min(job.unmade, left[account])):
            pages[job.uid] = (job, number)
            candidates += children(job, plans[job.spec], job.made, job.made + number)
        left[account] -= number
    return Turn(candidates, pages)


async def _due(connection: AsyncConnection, accounting: Accounting, now: datetime, most: int) -> list[Job]:
    if accounting.tree:
        return await first_of_each(connection, accounting.tree.leaves, now, most)
    return await first_in_line(connection, now, most)


async def _allotted(
    connection: AsyncConnection, accounting: Accounting, due: Sequence[Job], running: Mapping[str, int], room: Room
) -> Allotment:
    """How many jobs of each account may start; without accounts there is one for all."""
    if not accounting.tree:
        return Allotment({"": room.free})
    waiting: Counter[str] = Counter()
    for job in due:
        waiting[job.share] += max(0, min(job.unmade, running.get(job.uid, room.free))) if job.is_array else 1
    return allot(accounting.tree, await accounting.loads(connection), waiting, room.free, room.capacity)


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
    return {uid: most - counts[uid].of(*ACTIVE) for uid, most in limited.items()}


def _take(room: dict[str, int], array: str, wanted: int) -> int:
    if array not in room:
        return wanted
    taken = max(0, min(wanted, room[array]))
    room[array] -= taken
    return taken
