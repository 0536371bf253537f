"""What was decided about backends and how they did, in the database."""

import time
from collections import Counter
from collections.abc import Mapping

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.scheduler.v1.state_pb2 import JobState
from khomas.kit.database import insert_many
from khomas.scheduler import tables
from khomas.scheduler.placement.standing import Record, Standing, Status
from khomas.scheduler.store.bulk import add_many

_HOUR = 3600
# How long ago what happened still counts.
_SUCCESS_HOURS, _WAIT_HOURS = 24, 6
_QUEUED = (JobState.JOB_STATE_SUBMITTING, JobState.JOB_STATE_QUEUED)
_tally = tables.backend_tally.c


async def read_standings(connection: AsyncConnection) -> dict[str, Standing]:
    """What was decided, by backend; those that nothing was decided about are left out."""
    return {row.backend: Standing(*row) for row in (await connection.execute(select(tables.backend))).all()}


async def write_standing(connection: AsyncConnection, standing: Standing) -> None:
    """Write what was decided."""
    await connection.execute(delete(tables.backend).where(tables.backend.c.backend == standing.backend))
    row = {name: getattr(standing, name) for name in tables.backend.c.keys()}  # noqa: SIM118  columns, no dict
    if standing.status != Status.PRODUCTION or standing.bans:
        await insert_many(connection, tables.backend, [row])


async def read_records(connection: AsyncConnection) -> dict[str, Record]:
    """How backends did in the last day, and how long jobs waited in the last hours."""
    hour = int(time.time()) // _HOUR
    sums: dict[str, Counter[str]] = {}
    for backend, at, what, number in (
        await connection.execute(select(tables.backend_tally).where(_tally.hour > hour - _SUCCESS_HOURS))
    ).all():
        if what in ("good", "bad") or at > hour - _WAIT_HOURS:
            sums.setdefault(backend, Counter())[what] += number
    return {backend: Record(one["good"], one["bad"], one["waits"], one["wait_ms"]) for backend, one in sums.items()}


async def write_tallies(connection: AsyncConnection, news: Mapping[str, Mapping[str, int]]) -> None:
    """Add what happened, by backend."""
    hour = int(time.time()) // _HOUR
    rows = [
        {"backend": backend, "hour": hour, "what": what, "number": number}
        for backend, some in sorted(news.items())
        for what, number in sorted(some.items())
    ]
    await add_many(connection, tables.backend_tally, ("backend", "hour", "what"), "number", rows)


async def forget_old(connection: AsyncConnection) -> None:
    """Delete tallies that count no more."""
    hour = int(time.time()) // _HOUR
    await connection.execute(delete(tables.backend_tally).where(_tally.hour <= hour - _SUCCESS_HOURS))


async def our_jobs(connection: AsyncConnection) -> dict[tuple[str, str], tuple[int, int]]:
    """Attempts that run and that wait, by backend and queue."""
    attempt = tables.attempt.c
    query = select(attempt.backend, attempt.queue, attempt.state, func.count()).where(attempt.end_time.is_(None))
    found: dict[tuple[str, str], tuple[int, int]] = {}
    rows = await connection.execute(query.group_by(attempt.backend, attempt.queue, attempt.state))
    for backend, queue, state, number in rows.all():
        running, queued = found.get((backend, queue), (0, 0))
        waits = state in _QUEUED
        found[backend, queue] = (running + (0 if waits else number), queued + (number if waits else 0))
    return found
