"""How fast StorageElements fill, and when they will be full at that rate."""

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.kit.database import insert_many
from khomas.storage.tables import space, space_sample

# What came in a week: days and nights, and weekends, are in it.
_WINDOW = timedelta(days=7)
# Less says nothing about a day.
_LEAST = timedelta(hours=1)
_DAY = timedelta(days=1)
# Whoever reads this wants a date, not the age of the universe.
_FARTHEST = timedelta(days=36_500)


async def note(connection: AsyncConnection, names: Collection[str], now: datetime) -> None:
    """Note once an hour how much lies where; what is older than the window is forgotten."""
    hour = now.replace(minute=0, second=0, microsecond=0)
    known = (await connection.execute(select(space.c.storage_element, space.c.used_bytes))).all()
    used = {row.storage_element: row.used_bytes for row in known}
    rows = [{"storage_element": name, "sample_time": hour, "used_bytes": used.get(name, 0)} for name in names]
    await insert_many(connection, space_sample, rows, skip_existing=True)
    await connection.execute(delete(space_sample).where(space_sample.c.sample_time < hour - _WINDOW))


async def growths(connection: AsyncConnection, used: Mapping[str, int], now: datetime) -> dict[str, float]:
    """Return bytes a day by StorageElement since the first sample of the window; none where that is too young."""
    columns = space_sample.c
    first = (
        select(columns.storage_element, func.min(columns.sample_time).label("time"))
        .where(columns.sample_time >= now - _WINDOW - _LEAST)
        .group_by(columns.storage_element)
        .subquery()
    )
    query = select(space_sample).join(
        first, (first.c.storage_element == columns.storage_element) & (first.c.time == columns.sample_time)
    )
    found = {}
    for row in (await connection.execute(query)).all():
        if (span := now - row.sample_time) >= _LEAST:
            found[row.storage_element] = (used.get(row.storage_element, 0) - row.used_bytes) / (span / _DAY)
    return found


def full_time(growth: float, room: int | None, now: datetime) -> datetime | None:
    """Return when the room will be used up; None if nobody knows how much there is, or not within a hundred years."""
    if room is None or growth <= 0:
        return None
    days = max(room, 0) / growth
    return now + days * _DAY if days < _FARTHEST / _DAY else None
