"""Positions in an event log, and what the newest one is."""

import re
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import Table, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.kit.database.driver import Prepared, fetch
from khomas.kit.errors import FieldInvalid
from khomas.kit.events.table import xid_number

_WRITTEN = re.compile(r"([0-9a-f]{1,15})\.([0-9a-f]{1,15})")
_MAX_ID = 2**59
# The sequence remembers the newest id when its row is pruned.
_NEWEST = "SELECT max(seq) FROM sqlite_sequence WHERE name = ?"
_SNAPSHOT = Prepared(
    select(
        xid_number(func.pg_snapshot_xmin(func.pg_current_snapshot())),
        xid_number(func.pg_snapshot_xmax(func.pg_current_snapshot())),
    )
)


class Position(NamedTuple):
    """Where an event stands; positions ascend in the order of delivery."""

    xid: int
    id: int

    def __str__(self) -> str:
        return f"{self.xid:x}.{self.id:x}"

    @classmethod
    def of(cls, cursor: str) -> "Position":
        """Read a cursor; the empty one is before everything."""
        if not cursor:
            return START
        found = _WRITTEN.fullmatch(cursor)
        if found is None:
            raise FieldInvalid.of("cursor", 'must be empty, "now" or a cursor from this service')
        return cls(int(found[1], 16), int(found[2], 16))


START = Position(0, 0)


@dataclass(frozen=True, slots=True)
class Horizon:
    """What is known of the end of the log at one moment."""

    # Everything up to here is committed and stays as it is.
    settled: Position
    # Everything that was committed before that moment is up to here, perhaps not settled yet.
    end: Position


async def horizon(connection: AsyncConnection, table: Table) -> Horizon:
    """Look where the log ends now, with one statement."""
    if connection.dialect.name == "sqlite":
        ((newest,),) = await fetch(connection, _NEWEST, (table.name,))
        position = Position(0, newest or 0)
        return Horizon(position, position)
    ((oldest_running, next_one),) = await _SNAPSHOT.rows(connection)
    return Horizon(Position(oldest_running - 1, _MAX_ID), Position(next_one - 1, _MAX_ID))
