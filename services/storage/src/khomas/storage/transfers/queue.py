"""The queue of transfers in the database: claimed in batches by lane, renewed, settled in batches."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any

from sqlalchemy import ColumnElement, Select, case, func, literal, null, select, true, update
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.storage.v1 import transfer_pb2 as pb
from khomas.kit.database import Database, in_values, insert_many, rows_table
from khomas.kit.events import EventLog
from khomas.kit.leases import claim, held, held_table, lock, renew
from khomas.storage.deletions.taking_back import leaving
from khomas.storage.landing import Wanted
from khomas.storage.links.measures import Carried, Measures
from khomas.storage.links.tables import turn
from khomas.storage.links.waiting import Offers, Run, promote, waits_for_nobody
from khomas.storage.rows import mapping, mappings
from khomas.storage.tables import space, transfer, transfer_attempt
from khomas.storage.transfers import turns
from khomas.storage.transfers.retry import OF_THE_LINK, Policy, verdict
from khomas.storage.transfers.transfers import ACTIVE, transfer_event

_NOBODY = {"lease_owner": None, "lease_expire_time": None}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one attempt ended. Without a reason the file is there; a new, verified copy lies at `path`."""

    uid: str
    epoch: int
    attempt: int
    max_attempts: int
    file_uid: str
    destination: str
    source: str
    source_path: str
    path: str
    reason: pb.TransferReason.ValueType
    message: str
    bytes: int
    # What lies there.
    copied: Wanted | None
    start_time: datetime
    elapsed_seconds: float
    deadline: datetime | None = None
    # Where the next attempt is to read, empty = not known; and whether no attempt has tried that.
    next_source: str = ""
    elsewhere: bool = False
    # Its part of the time of the stream that brought it along with others.
    stream_seconds: float = 0.0
    queued_seconds: float = 0.0
    bottleneck: pb.Bottleneck.ValueType = pb.BOTTLENECK_UNSPECIFIED
    streamed_bytes: int = 0
    executor: str = ""


class Queue:
    """The transfers that are to be done."""

    def __init__(
        self, database: Database, log: EventLog, owner: str, lease: timedelta, policy: Policy, measures: Measures
    ) -> None:
        self._database = database
        self._log = log
        self._owner = owner
        self._lease = lease
        self._policy = policy
        self._measures = measures
        self._offers = Offers(database, measures)

    async def claim(self, streams: int, sites: Mapping[str, str]) -> list[Sequence[Mapping[str, Any]]]:
        """Take the next transfers for so many streams, each run for one; they are ours until the lease ends."""
        now = datetime.now(UTC)
        async with self._database.read() as connection:
            forgotten = await waits_for_nobody(connection, now)
        if forgotten:
            async with self._database.write() as connection:
                ended = await promote(connection, now)
                await self._log.append(connection, [transfer_event(row) for row in ended])
        runs = await self._offers.runs(streams, sites)
        return await self._taken(runs, now) if runs else []

    async def _taken(self, runs: Sequence[Run], now: datetime) -> list[Sequence[Mapping[str, Any]]]:
        run_of = {uid: run.uid for run in runs for uid in run.members}
        wanted = select(transfer.c.uid).where(
            in_values(transfer.c.uid, list(run_of)), transfer.c.state + 0 == pb.Transfer.STATE_WAITING
        )
        async with self._database.write() as connection:
            found = await claim(
                connection,
                transfer,
                wanted,
                owner=self._owner,
                now=now,
                until=now + self._lease,
                returning=[transfer.c.uid],
            )
            types = {"uid": transfer.c.uid.type, "run": transfer.c.run.type}
            ours = rows_table(connection, types, [(row.uid, run_of[row.uid]) for row in found])
            running = {"state": pb.Transfer.STATE_RUNNING, "reason": 0, "message": "", "state_time": now}
            statement = (
                update(transfer)
                .where(_among(connection, run_of), transfer.c.uid == ours.c.uid)
                .values(**running, attempt=transfer.c.attempt + 1, run=ours.c.run, moved_bytes=0)
                .returning(transfer)
            )
            rows = mappings(await connection.execute(statement))
            await turns.come_to(connection, {run.lane: run.turn for run in runs})
            await self._log.append(connection, [transfer_event(row) for row in rows])
        by_run = sorted(rows, key=lambda row: (row["run"], row["turn"]))
        return [list(members) for _, members in groupby(by_run, key=lambda row: row["run"])]

    async def failed_sources(self, uids: Sequence[str]) -> dict[str, list[str]]:
        """Return, for transfers, where earlier attempts have read in vain."""
        columns = transfer_attempt.c
        blamed = (pb.TRANSFER_REASON_SOURCE, pb.TRANSFER_REASON_SOURCE_CHECKSUM)
        query = select(columns.transfer_uid, columns.source).where(
            in_values(columns.transfer_uid, uids), columns.reason.in_(blamed)
        )
        sources: dict[str, list[str]] = {}
        async with self._database.read() as connection:
            for uid, source in (await connection.execute(query)).all():
                sources.setdefault(uid, []).append(source)
        return sources

    async def leaving(self, file_uids: Sequence[str]) -> set[tuple[str, str]]:
        """Return the (file, StorageElement) pairs whose replica is being deleted, so that none is brought there."""
        async with self._database.read() as connection:
            return await leaving(connection, file_uids)

    async def used_bytes(self, elements: Iterable[str]) -> dict[str, int]:
        """Return how much lies on StorageElements."""
        query = select(space.c.storage_element, space.c.used_bytes).where(
            in_values(space.c.storage_element, list(elements))
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return {row.storage_element: row.used_bytes for row in rows}

    async def renew(self, epochs: Mapping[str, int]) -> set[str]:
        """Keep transfers; return those that are still ours."""
        async with self._database.write() as connection:
            return set(await renew(connection, transfer, epochs, until=datetime.now(UTC) + self._lease))

    async def note_progress(self, moved: Mapping[str, tuple[int, int]]) -> None:
        """Note how many bytes attempts have moved; by uid, with the epoch first."""
        types = {"uid": transfer.c.uid.type, "epoch": transfer.c.lease_epoch.type, "bytes": transfer.c.moved_bytes.type}
        async with self._database.write() as connection:
            await lock(connection, transfer, moved)
            new = rows_table(connection, types, [(uid, *values) for uid, values in moved.items()])
            same = (transfer.c.uid == new.c.uid) & (transfer.c.lease_epoch == new.c.epoch)
            await connection.execute(update(transfer).where(same).values(moved_bytes=new.c.bytes))

    async def note_paths(self, paths: Mapping[str, tuple[int, str]]) -> set[str]:
        """Note where copies are about to get their names; return which transfers are still ours."""
        types = {"uid": transfer.c.uid.type, "epoch": transfer.c.lease_epoch.type, "path": transfer.c.path.type}
        async with self._database.write() as connection:
            await lock(connection, transfer, paths)
            new = rows_table(connection, types, [(uid, *values) for uid, values in paths.items()])
            same = (transfer.c.uid == new.c.uid) & (transfer.c.lease_epoch == new.c.epoch)
            statement = update(transfer).where(same).values(path=new.c.path).returning(transfer.c.uid)
            return set((await connection.scalars(statement)).all())

    async def note_external(self, epochs: Mapping[str, int], external: str, hidden: Mapping[str, str]) -> set[str]:
        """Note which executor has transfers, and where it writes to; return which are still ours."""
        types = {"uid": transfer.c.uid.type, "hidden": transfer.c.hidden.type}
        async with self._database.write() as connection:
            await lock(connection, transfer, epochs)
            leases = held_table(connection, transfer, epochs)
            new = rows_table(connection, types, list(hidden.items()))
            statement = (
                update(transfer)
                .where(held(transfer, leases), transfer.c.uid == new.c.uid)
                .values(external=external, hidden=new.c.hidden)
                .returning(transfer.c.uid)
            )
            return set((await connection.scalars(statement)).all())

    async def settle(self, outcomes: Sequence[Outcome]) -> None:
        """Write down how attempts ended; those that are not ours any more are left as they are."""
        now = datetime.now(UTC)
        names = ("uid", "lease_epoch", "state", "reason", "message", "next_attempt_time", "lane")
        columns = {name: transfer.c[name].type for name in names}
        rows = [self._settled(one, now) for one in outcomes]
        async with self._database.write() as connection:
            await lock(connection, transfer, [one.uid for one in outcomes])
            new = rows_table(connection, columns, rows)
            values = {name: new.c[name] for name in names[2:]}
            # It has had its turn once: back in a lane it is among the first.
            clock = select(turn.c.turn).where(turn.c.lane == new.c.lane, turn.c.share == "")
            statement = (
                update(transfer)
                .where(
                    _among(connection, [one.uid for one in outcomes]),
                    transfer.c.uid == new.c.uid,
                    transfer.c.lease_epoch == new.c.lease_epoch,
                )
                .values(
                    **values,
                    **_NOBODY,
                    turn=case((new.c.state.in_(ACTIVE), _or_nothing(clock)), else_=transfer.c.turn),
                    end_time=case((new.c.state.in_(ACTIVE), null()), else_=literal(now, transfer.c.end_time.type)),
                    state_time=now,
                    external="",
                    hidden="",
                )
                .returning(transfer)
            )
            settled = {row.uid: mapping(row) for row in (await connection.execute(statement)).all()}
            ours = [one for one in outcomes if one.uid in settled]
            await insert_many(connection, transfer_attempt, [_attempt(one) for one in ours], skip_existing=True)
            await self._measures.count(connection, _carried(ours), now)
            await self._log.append(connection, [transfer_event(row) for row in settled.values()])

    def _settled(self, one: Outcome, now: datetime) -> tuple[Any, ...]:
        said = verdict(
            one.reason,
            one.attempt,
            one.max_attempts,
            self._policy,
            now,
            elsewhere=one.elsewhere,
            deadline=one.deadline,
        )
        lane = turns.lane(one.next_source or one.source, one.destination)
        return one.uid, one.epoch, said.state, said.reason, one.message, said.next_attempt_time, lane


def _among(connection: AsyncConnection, uids: Collection[str]) -> ColumnElement[bool]:
    """Say again which rows a join is about: for the join alone PostgreSQL reads the whole table.

    SQLite looks each row up, and would do it again for each that is said here.
    """
    return in_values(transfer.c.uid, uids) if connection.dialect.name == "postgresql" else true()


def _or_nothing(query: Select[float]) -> Any:
    return func.coalesce(query.scalar_subquery(), 0.0)


def _carried(outcomes: Iterable[Outcome]) -> list[Carried]:
    """Return what attempts say about links: what arrived, and what did not because of one of the ends."""
    return [
        Carried(
            one.source,
            one.destination,
            one.bytes if one.copied is not None else 0,
            one.stream_seconds,
            one.elapsed_seconds,
            f"{one.message or pb.TransferReason.Name(one.reason)}" if one.reason else "",
        )
        for one in outcomes
        if one.source and (one.reason in OF_THE_LINK if one.reason else one.copied is not None)
    ]


def _attempt(one: Outcome) -> dict[str, Any]:
    return {
        "transfer_uid": one.uid,
        "number": one.attempt,
        "source": one.source,
        "reason": one.reason,
        "message": one.message,
        "bytes": one.bytes,
        "start_time": one.start_time,
        "elapsed_seconds": one.elapsed_seconds,
        "queued_seconds": one.queued_seconds,
        "bottleneck": one.bottleneck,
        "streamed_bytes": one.streamed_bytes,
        "executor": one.executor,
    }
