"""How many deletions a StorageElement takes: each has its moment, and none is given one far ahead.

The moments of a StorageElement follow one another in the database, so that all processes together keep to its rate.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.storage.v1 import transfer_pb2 as pb
from khomas.kit.database import in_values, rows_table
from khomas.storage.reconciling.tables import care
from khomas.storage.tables import deletion

# So soon a new rate counts.
_AHEAD: Final = timedelta(seconds=10)


def not_far_ahead(now: datetime) -> ColumnElement[bool]:
    """Leave those out whose StorageElement has given away enough moments; those that have one come."""
    ahead = select(care.c.storage_element).where(care.c.deletions_until > now + _AHEAD)
    return or_(deletion.c.reason == pb.DELETION_REASON_RATE, deletion.c.storage_element.not_in(ahead))


async def spread(
    connection: AsyncConnection, rows: Sequence[Row[Any]], rates: Mapping[str, float], now: datetime
) -> dict[str, datetime]:
    """Give deletions that were claimed their moments; return those, by uid, whose moment is still to come."""
    new = [row for row in rows if rates.get(row.storage_element) and row.reason != pb.DELETION_REASON_RATE]
    if not new:
        return {}
    elements = {row.storage_element for row in new}
    query = select(care).where(in_values(care.c.storage_element, elements)).with_for_update()
    until = {row.storage_element: row.deletions_until for row in (await connection.execute(query)).all()}
    moments: dict[str, datetime] = {}
    next_ones = {name: max(until.get(name) or now, now) for name in elements}
    for row in new:
        moment = next_ones[row.storage_element]
        next_ones[row.storage_element] = moment + timedelta(seconds=1 / rates[row.storage_element])
        if moment > now:
            moments[row.uid] = moment
    await _keep(connection, next_ones)
    return moments


async def _keep(connection: AsyncConnection, until: Mapping[str, datetime]) -> None:
    columns = {name: care.c[name].type for name in ("storage_element", "deletions_until")}
    new = rows_table(connection, columns, list(until.items()))
    statement = update(care).where(care.c.storage_element == new.c.storage_element)
    await connection.execute(statement.values(deletions_until=new.c.deletions_until))
