"""A service's own event log: append in the transaction of the change, watch from a cursor."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import takewhile

from google.protobuf.any_pb2 import Any as AnyMessage
from sqlalchemy import ColumnElement, Table, Tuple, case, delete, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.common.v1 import event_pb2 as pb
from khomas.kit.database import AnyRow, Database
from khomas.kit.errors import CursorExpired
from khomas.kit.events.cursor import START, Position, horizon
from khomas.kit.events.table import PRUNED, NewEvent, event_rows
from khomas.kit.filtering import fields, where

RETENTION = timedelta(days=7)
_BATCH = 500
# An answer with more than one event stays below the 4 MiB that gRPC takes in unless it is told otherwise.
_MAX_BYTES = 2 * 1024 * 1024
_PRUNE_BATCH = 5000
# Writers in other processes do not wake us up. The figure is what a watcher waits at most.
_POLL_SECONDS = {"postgresql": 0.2, "sqlite": 1.0}
# Commits come in bursts; a watcher answers a burst with one batch.
_GATHER_SECONDS = 0.005
_HEARTBEAT_SECONDS = 15.0


class EventLog:
    """Events of one service in `table`, made by `event_table`."""

    def __init__(self, database: Database, table: Table, retention: timedelta = RETENTION) -> None:
        self._database = database
        self._table = table
        self._retention = retention
        self._appended = asyncio.Event()
        self._fields = {key: fields.text(table.c[key]) for key in ("kind", "subject", "subject_uid", "origin")}

    async def append(self, connection: AsyncConnection, events: Sequence[NewEvent]) -> None:
        """Add events to the transaction of their change, at its end; watchers wake up when it commits."""
        if events:
            self._database.insert_at_end(connection, event_rows(self._table, self._database.dialect, events))
            self._database.after_commit(connection, self._wake)

    async def watch(self, request: pb.WatchEventsRequest) -> AsyncGenerator[pb.WatchEventsResponse, None]:
        """Answer a WatchEvents call.

        Delivers every committed event after the cursor at least once and in cursor order. The first answer
        comes at once, and one at least every 15 s, be they empty: they tell the caller where it stands.
        """
        matches = where(request.filter, self._fields)
        async with self._database.read() as connection:
            start = await horizon(connection, self._table)
        position = start.settled if request.cursor == "now" else Position.of(request.cursor)
        if position > start.end:
            # The database was restored to an older state: the log no longer has what the cursor means.
            raise CursorExpired(oldest_cursor=str(START))
        answered, read = 0.0, START
        while True:
            appended = self._appended
            settled, rows = await self._read(position, read, matches)
            _check_kept(position, rows)
            full = len(rows) == _BATCH
            done = request.until_now and not full and settled >= start.end
            for part in _parts(rows):
                if part:
                    position = Position(part[-1].xid, part[-1].id)
                events = [_event(row) for row in part if row.matches]
                if events or done or time.monotonic() > answered + _HEARTBEAT_SECONDS:
                    answered = time.monotonic()
                    yield pb.WatchEventsResponse(events=events, cursor=str(position))
            if done:
                return
            if not full:
                read = settled
                await self._wait(appended)

    async def prune(self) -> None:
        """Delete the events that are older than the retention, in batches."""
        cutoff = datetime.now(UTC) - self._retention
        while await self._prune_batch(cutoff):
            pass

    async def _read(
        self, position: Position, read: Position, matches: ColumnElement[bool]
    ) -> tuple[Position, Sequence[AnyRow]]:
        """Return rows after the position, and up to where none can appear any more.

        All up to `read` has been read: nothing is asked for while nothing more is settled.
        """
        columns = self._table.c
        async with self._database.read() as connection:
            settled = (await horizon(connection, self._table)).settled
            if settled <= read:
                return settled, []
            query = (
                select(
                    *[column for column in columns if column.key != "resource"],
                    # Only what the watcher wants leaves the database.
                    case((matches, columns.resource), else_=b"").label("resource"),
                    (matches & (columns.kind != PRUNED)).label("matches"),
                )
                .where(self._position() > tuple_(*position), columns.xid <= settled.xid)
                .order_by(columns.xid, columns.id)
                .limit(_BATCH)
            )
            return settled, (await connection.execute(query)).all()

    async def _prune_batch(self, cutoff: datetime) -> bool:
        columns = self._table.c
        oldest = select(columns.xid, columns.id, columns.kind, columns.create_time)
        async with self._database.write() as connection:
            query = oldest.order_by(columns.xid, columns.id).limit(_PRUNE_BATCH)
            rows = (await connection.execute(query)).all()
            old = list(takewhile(lambda row: row.create_time < cutoff, rows))
            if not old or old[-1].kind == PRUNED:
                return False
            # The newest one of them stays as a mark for watchers that have not come as far.
            mark = {"kind": PRUNED, "subject": "", "subject_uid": "", "origin": "", "resource": b""}
            await connection.execute(update(self._table).values(mark).where(columns.id == old[-1].id))
            await connection.execute(delete(self._table).where(self._position() < tuple_(*old[-1][:2])))
        return len(old) == _PRUNE_BATCH

    def _position(self) -> Tuple:
        return tuple_(self._table.c.xid, self._table.c.id)

    def _wake(self) -> None:
        self._appended.set()
        self._appended = asyncio.Event()

    async def _wait(self, appended: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(_POLL_SECONDS[self._database.dialect]):
                await appended.wait()
        except TimeoutError:
            return
        await asyncio.sleep(_GATHER_SECONDS)


def _check_kept(position: Position, rows: Sequence[AnyRow]) -> None:
    """Refuse to go on over events that were pruned before this watcher saw them."""
    if position == START:
        return
    for row in rows:
        if row.kind == PRUNED:
            raise CursorExpired(oldest_cursor=str(Position(row.xid, row.id)))


def _parts(rows: Sequence[AnyRow]) -> Iterator[list[AnyRow]]:
    """Divide rows into answers of bounded size, each with one at least where there is one."""
    part: list[AnyRow] = []
    size = 0
    for row in rows:
        size += len(row.resource)
        if part and size > _MAX_BYTES:
            yield part
            part, size = [], len(row.resource)
        part.append(row)
    yield part


def _event(row: AnyRow) -> pb.Event:
    return pb.Event(
        cursor=str(Position(row.xid, row.id)),
        uid=row.uid,
        kind=row.kind,
        subject=row.subject,
        subject_uid=row.subject_uid,
        origin=row.origin,
        create_time=row.create_time,
        trace_id=row.trace_id,
        resource=AnyMessage.FromString(row.resource),
    )
