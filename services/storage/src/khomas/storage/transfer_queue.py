"""The queue of transfers in the database: claimed in batches, renewed, settled in batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import select, update

from khomas.api.storage.v1 import transfer_pb2 as pb
from khomas.kit.database import Database, in_values, insert_many, rows_table
from khomas.kit.events import EventLog
from khomas.kit.leases import claim, renew
from khomas.storage.elements import Usage
from khomas.storage.landing import Wanted
from khomas.storage.retry import Policy, verdict
from khomas.storage.rows import mapping, mappings
from khomas.storage.space import usages
from khomas.storage.tables import transfer, transfer_attempt
from khomas.storage.transfers import ACTIVE, transfer_event


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


class Queue:
    """The transfers that are to be done."""

    def __init__(self, database: Database, log: EventLog, owner: str, lease: timedelta, policy: Policy) -> None:
        self._database = database
        self._log = log
        self._owner = owner
        self._lease = lease
        self._policy = policy

    async def claim(self, limit: int) -> Sequence[Mapping[str, Any]]:
        """Take the next transfers; they are RUNNING then, and ours until the lease ends."""
        now = datetime.now(UTC)
        due = (
            select(transfer.c.uid)
            .where(transfer.c.state.in_(ACTIVE), transfer.c.next_attempt_time <= now)
            .order_by(transfer.c.priority.desc(), transfer.c.next_attempt_time)
            .limit(limit)
        )
        async with self._database.read() as connection:
            if (await connection.execute(due.limit(1))).first() is None:
                return []
        async with self._database.write() as connection:
            found = await claim(
                connection,
                transfer,
                due,
                owner=self._owner,
                now=now,
                until=now + self._lease,
                returning=[transfer.c.uid],
            )
            running = {"state": pb.Transfer.STATE_RUNNING, "reason": 0, "message": "", "state_time": now}
            statement = (
                update(transfer)
                .where(in_values(transfer.c.uid, [row.uid for row in found]))
                .values(**running, attempt=transfer.c.attempt + 1)
                .returning(transfer)
            )
            rows = mappings(await connection.execute(statement))
            await self._log.append(connection, [transfer_event(row) for row in rows])
        return rows

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

    async def used_bytes(self, element: str) -> int:
        """Return how much lies on a StorageElement."""
        async with self._database.read() as connection:
            return (await usages(connection)).get(element, Usage()).used_bytes

    async def renew(self, epochs: Mapping[str, int]) -> set[str]:
        """Keep transfers; return those that are still ours."""
        async with self._database.write() as connection:
            return set(await renew(connection, transfer, epochs, until=datetime.now(UTC) + self._lease))

    async def note_path(self, uid: str, epoch: int, path: str) -> bool:
        """Note where a copy is about to get its name; tell whether the transfer is still ours."""
        statement = update(transfer).where(transfer.c.uid == uid, transfer.c.lease_epoch == epoch).values(path=path)
        async with self._database.write() as connection:
            return bool((await connection.execute(statement)).rowcount)

    async def settle(self, outcomes: Sequence[Outcome]) -> None:
        """Write down how attempts ended; those that are not ours any more are left as they are."""
        now = datetime.now(UTC)
        columns = {
            name: transfer.c[name].type
            for name in ("uid", "lease_epoch", "state", "reason", "message", "next_attempt_time")
        }
        rows = []
        for one in outcomes:
            said = verdict(one.reason, one.attempt, one.max_attempts, self._policy, now)
            rows.append((one.uid, one.epoch, said.state, said.reason, one.message, said.next_attempt_time))
        async with self._database.write() as connection:
            new = rows_table(connection, columns, rows)
            values = {name: new.c[name] for name in ("state", "reason", "message", "next_attempt_time")}
            statement = (
                update(transfer)
                .where(transfer.c.uid == new.c.uid, transfer.c.lease_epoch == new.c.lease_epoch)
                .values(**values, state_time=now, lease_owner=None, lease_expire_time=None)
                .returning(transfer)
            )
            settled = {row.uid: mapping(row) for row in (await connection.execute(statement)).all()}
            ended = [uid for uid, row in settled.items() if row["state"] not in ACTIVE]
            if ended:
                final = update(transfer).where(in_values(transfer.c.uid, ended)).values(end_time=now)
                await connection.execute(final)
            attempts = [_attempt(one) for one in outcomes if one.uid in settled]
            await insert_many(connection, transfer_attempt, attempts, skip_existing=True)
            events = [
                transfer_event({**row, "end_time": now if uid in ended else None}) for uid, row in settled.items()
            ]
            await self._log.append(connection, events)


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
    }
