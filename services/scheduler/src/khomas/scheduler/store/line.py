"""The line of jobs that wait for their turn: the highest priority first, then who waits longest."""

from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import and_, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.scheduler.v1.state_pb2 import Reason
from khomas.scheduler import tables
from khomas.scheduler.records import ACTIVE, Job

_job, _count = tables.job.c, tables.count.c
_array = tables.job.alias("array")
_active = select(func.coalesce(func.sum(_count.number), 0)).where(_count.parent == _array.c.uid)
_active = _active.where(_count.state.between(min(ACTIVE), max(ACTIVE)))
_throttled = select(_array.c.uid).where(
    _array.c.uid.in_([_job.uid, _job.parent]),
    _array.c.max_running > 0,
    _array.c.max_running <= _active.scalar_subquery(),
)
# Arrays that have enough running, and children that were told so, take nobody's place. Most jobs are neither, and
# nothing is looked up for them.
_MAY_START = or_(
    and_(_job.max_running == 0, _job.reason != Reason.REASON_WAIT_THROTTLED), ~_throttled.correlate(tables.job).exists()
)


async def first_in_line(connection: AsyncConnection, now: datetime, most: int) -> list[Job]:
    """Up to so many due jobs."""
    query = select(tables.job).where(_job.due <= now, _MAY_START)
    query = query.order_by(_job.priority.desc(), _job.due, _job.uid)
    return [Job._make(row) for row in (await connection.execute(query.limit(most))).all()]


async def first_of_each(connection: AsyncConnection, leaves: Iterable[str], now: datetime, most: int) -> list[Job]:
    """Up to so many due jobs of each account."""
    found: list[Job] = []
    for leaf in leaves:
        query = select(tables.job).where(_job.share == leaf, _job.due <= now, _MAY_START)
        query = query.order_by(_job.priority.desc(), _job.due, _job.uid)
        found += [Job._make(row) for row in (await connection.execute(query.limit(most))).all()]
    return found
