"""What links have carried: counted when attempts are settled, by the hour, and kept for a day."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import delete, exists, func, select, true
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.storage.v1 import transfer_pb2
from khomas.kit.database import Database, rows_table
from khomas.storage.links.adapting import Pace, adapted, begun
from khomas.storage.links.bounds import Limit
from khomas.storage.links.tables import link, link_hour, link_limit
from khomas.storage.tables import transfer
from khomas.storage.transfers.turns import lane

Ends = tuple[str, str]
_KEPT: Final = timedelta(days=1)
_KEEP_SECONDS: Final = 2.0
_PACE = ("streams", "step", "rate_before", "window_start", "window_bytes", "window_files", "window_errors")


@dataclass(frozen=True, slots=True)
class Carried:
    """What one attempt has brought over a link, or why it has not."""

    source: str
    destination: str
    bytes: int
    # Its part of the time of a stream, and how long it took from its beginning to its end.
    seconds: float
    elapsed: float
    # Empty = it arrived.
    error: str = ""


@dataclass(frozen=True, slots=True)
class Measure:
    """What a link has carried in the last day."""

    bytes: int = 0
    files: int = 0
    errors: int = 0
    stream_seconds: float = 0.0
    busy_seconds: float = 0.0

    @property
    def stream_rate(self) -> float:
        """Return bytes a second of one stream."""
        return self.bytes / self.stream_seconds if self.stream_seconds else 0.0

    @property
    def rate(self) -> float:
        """Return bytes a second of all streams together, while there were some."""
        return self.bytes / self.busy_seconds if self.busy_seconds else 0.0

    @property
    def success(self) -> float:
        """Return the part of the attempts that succeeded."""
        return self.files / (self.files + self.errors) if self.files + self.errors else 1.0


@dataclass(frozen=True, slots=True)
class Streams:
    """How many streams links may carry: in the beginning, and at most."""

    first: int
    most: int


class Measures:
    """Reads and writes what is known of links. What is read is up to some seconds old."""

    def __init__(self, database: Database, streams: Streams) -> None:
        self._database = database
        self.streams = streams
        self._limits: Sequence[Limit] = ()
        self._limits_until = 0.0
        # What links have carried in the last day, by source and destination, as of the last `refresh`.
        self.known: Mapping[Ends, Measure] = {}

    async def limits(self) -> Sequence[Limit]:
        """Return all bounds that operators have set."""
        if time.monotonic() >= self._limits_until:
            query = select(link_limit).order_by(link_limit.c.source, link_limit.c.destination)
            async with self._database.read() as connection:
                rows = (await connection.execute(query)).all()
            self._limits = [Limit(row.source, row.destination, row.max_streams, row.max_rate) for row in rows]
            self._limits_until = time.monotonic() + _KEEP_SECONDS
        return self._limits

    async def set_limit(self, connection: AsyncConnection, limit: Limit) -> None:
        """Set a bound; one that bounds nothing is removed."""
        old = delete(link_limit).where(
            link_limit.c.source == limit.source, link_limit.c.destination == limit.destination
        )
        values = {name: getattr(limit, name) for name in ("source", "destination", "max_streams", "max_rate")}
        await connection.execute(old)
        if limit.max_streams or limit.max_rate:
            await connection.execute(link_limit.insert().values(values))
        self._database.after_commit(connection, self._look_again)

    def _look_again(self) -> None:
        self._limits_until = 0.0

    async def refresh(self) -> None:
        """Add up what links have carried, so that whoever chooses a source need not."""
        async with self._database.read() as connection:
            self.known = await measured(connection, datetime.now(UTC))

    async def count(self, connection: AsyncConnection, attempts: Iterable[Carried], now: datetime) -> None:
        """Add what attempts have brought, and adapt the number of streams: three statements."""
        by_link: dict[Ends, list[Carried]] = {}
        for one in attempts:
            by_link.setdefault((one.source, one.destination), []).append(one)
        if not by_link:
            return
        known = await self._paces(connection, sorted(by_link))
        links, hours = [], []
        for ends in sorted(by_link):
            brought = by_link[ends]
            row = known.get(ends)
            pace = Pace(*[row[name] for name in _PACE]) if row else begun(self.streams.first, now)
            waiting = bool(row and row["waiting"])
            links.append((*ends, *self._adapted(pace, brought, now, waiting=waiting), now, *_last(row, brought, now)))
            hours.append((*ends, *_hour(row, brought, now)))
        await _replace(connection, links)
        await _add(connection, hours)

    def _adapted(self, pace: Pace, brought: Sequence[Carried], now: datetime, *, waiting: bool) -> tuple[Any, ...]:
        idle = not pace.window_files + pace.window_errors
        counted = Pace(
            pace.streams,
            pace.step,
            pace.rate_before,
            # Before the first file of a window the link may have had nothing to do.
            max(pace.window_start, now - timedelta(seconds=max(one.elapsed for one in brought)))
            if idle
            else pace.window_start,
            pace.window_bytes + sum(one.bytes for one in brought),
            pace.window_files + sum(not one.error for one in brought),
            pace.window_errors + sum(bool(one.error) for one in brought),
        )
        new = adapted(counted, now, waiting=waiting, most=self.streams.most)
        return tuple(getattr(new, name) for name in _PACE)

    async def _paces(self, connection: AsyncConnection, ends: Sequence[Ends]) -> dict[Ends, dict[str, Any]]:
        types = {"source": link.c.source.type, "destination": link.c.destination.type, "lane": transfer.c.lane.type}
        asked = rows_table(connection, types, [(*one, lane(*one)) for one in ends])
        more = exists().where(
            transfer.c.state == transfer_pb2.Transfer.STATE_WAITING,
            transfer.c.reason == transfer_pb2.TRANSFER_REASON_QUEUED,
            transfer.c.lane == asked.c.lane,
        )
        same = (link.c.source == asked.c.source) & (link.c.destination == asked.c.destination)
        query = select(link, more.label("waiting")).select_from(asked.join(link, same))
        rows = (await connection.execute(query)).all()
        return {(row.source, row.destination): dict(row._mapping) for row in rows}  # noqa: SLF001  public name

    async def prune(self) -> None:
        """Forget old hours."""
        async with self._database.write() as connection:
            await connection.execute(delete(link_hour).where(link_hour.c.hour < datetime.now(UTC) - 2 * _KEPT))


async def measured(connection: AsyncConnection, now: datetime) -> dict[Ends, Measure]:
    """Add up the last day."""
    names = ("bytes", "files", "errors", "stream_seconds", "busy_seconds")
    query = (
        select(link_hour.c.source, link_hour.c.destination, *[func.sum(link_hour.c[name]) for name in names])
        .where(link_hour.c.hour > now - _KEPT)
        .group_by(link_hour.c.source, link_hour.c.destination)
    )
    return {
        (source, destination): Measure(int(bytes_), int(files), int(errors), float(streams), float(busy))
        for source, destination, bytes_, files, errors, streams, busy in (await connection.execute(query)).all()
    }


def _last(row: Mapping[str, Any] | None, brought: Sequence[Carried], now: datetime) -> tuple[Any, ...]:
    """Return message and times of the last error and the last arrival."""
    message, failed, arrived = (row["message"], row["error_time"], row["arrive_time"]) if row else ("", None, None)
    errors = [one.error for one in brought if one.error]
    if errors:
        message, failed = errors[-1], now
    return message, failed, now if len(errors) < len(brought) else arrived


def _hour(row: Mapping[str, Any] | None, brought: Sequence[Carried], now: datetime) -> tuple[Any, ...]:
    busy = max(one.elapsed for one in brought)
    if row is not None:
        # Streams side by side share the time.
        busy = max(0.0, min(busy, (now - row["count_time"]).total_seconds()))
    return (
        now.replace(minute=0, second=0, microsecond=0),
        sum(one.bytes for one in brought if not one.error),
        sum(not one.error for one in brought),
        sum(bool(one.error) for one in brought),
        sum(one.seconds for one in brought if not one.error),
        busy,
    )


async def _replace(connection: AsyncConnection, rows: Sequence[tuple[Any, ...]]) -> None:
    names = ("source", "destination", *_PACE, "count_time", "message", "error_time", "arrive_time")
    new = rows_table(connection, {name: link.c[name].type for name in names}, rows)
    insert = (postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert)(link)
    statement = insert.from_select(list(names), select(*[new.c[name] for name in names]).where(true()))
    values = {name: statement.excluded[name] for name in names[2:]}
    await connection.execute(statement.on_conflict_do_update(index_elements=["source", "destination"], set_=values))


async def _add(connection: AsyncConnection, rows: Sequence[tuple[Any, ...]]) -> None:
    names = [column.name for column in link_hour.columns]
    new = rows_table(connection, {name: link_hour.c[name].type for name in names}, rows)
    insert = (postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert)(link_hour)
    statement = insert.from_select(names, select(*[new.c[name] for name in names]).where(true()))
    sums = {name: link_hour.c[name] + statement.excluded[name] for name in names[3:]}
    await connection.execute(
        statement.on_conflict_do_update(index_elements=["source", "destination", "hour"], set_=sums)
    )
