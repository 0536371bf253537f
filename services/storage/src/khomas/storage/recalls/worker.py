"""Takes recalls to tape systems and follows them: one request for many, asked after in bulk.

Nothing is lost by whatever ends in between. That a tape system is going to be asked is written down first; when its
answer was lost, it is asked whether it knows the files before it is asked for them again. A front end that is away
stops nothing for good: recalls wait for it, however long that takes.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import Row, and_, delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.storage.v1.transfer_pb2 import Transfer
from khomas.kit.database import Database, in_values, rows_table
from khomas.kit.errors import DomainError
from khomas.kit.events import EventLog
from khomas.kit.ids import new_uid
from khomas.kit.leases import claim
from khomas.storage.elements.elements import Elements, Protocols
from khomas.storage.protocols.interface import Problem, ProtocolFault, Recalling, Tape
from khomas.storage.recalls.messages import State, recall_event
from khomas.storage.recalls.tables import recall, recall_request
from khomas.storage.recalls.verdicts import Outcome, Patience, answered, asked, fault_outcome, found_again, paid
from khomas.storage.rows import mapping
from khomas.storage.tables import transfer

_BATCH: Final = 1000
_ANY: Final = "*"
_GATHERINGS: Final = 5
_RETENTION: Final = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Pace:
    """How often tape systems are asked."""

    # New recalls wait so long for others, at most five times.
    gather: timedelta
    lease: timedelta
    patience: Patience


class Worker:
    """Works on what is due."""

    def __init__(
        self,
        database: Database,
        log: EventLog,
        elements: Elements,
        protocols: Protocols,
        *,
        owner: str,
        pace: Pace,
    ) -> None:
        self._database = database
        self._log = log
        self._elements = elements
        self._protocols = protocols
        self._owner = owner
        self._pace = pace

    async def work(self) -> None:
        """Do everything that is due now, each once: what is due again meanwhile waits for the next pass."""
        began = datetime.now(UTC)
        await self._end_pins(began)
        for element in await self._elements_due():
            await self._ask(element, began)
        while rows := await self._claim(recall.c.state == State.STATE_REQUESTED, began):
            await self._each_group(rows, self._poll)
        while rows := await self._claim(_owed(), began):
            await self._each_group(rows, self._pay)

    async def prune(self) -> None:
        """Forget what ended long ago, and requests of which no recall is left."""
        before = datetime.now(UTC) - _RETENTION
        used = select(recall.c.request_uid).where(recall.c.request_uid == recall_request.c.uid)
        async with self._database.write() as connection:
            await connection.execute(delete(recall).where(recall.c.end_time < before, recall.c.owed == ""))
            await connection.execute(
                delete(recall_request).where(recall_request.c.create_time < before, ~used.exists())
            )

    # ------------------------------------------------------------------------------------------------- asking

    async def _elements_due(self) -> list[str]:
        """Return the StorageElements of which nobody else is going to come along, or enough have."""
        now, gather = datetime.now(UTC), self._pace.gather
        query = (
            select(recall.c.storage_element)
            .where(recall.c.state == State.STATE_WAITING, recall.c.due_time <= now)
            .group_by(recall.c.storage_element)
            .having(
                or_(
                    func.max(recall.c.create_time) <= now - gather,
                    func.min(recall.c.due_time) <= now - _GATHERINGS * gather,
                    func.count() >= _BATCH,
                )
            )
        )
        async with self._database.read() as connection:
            return list((await connection.scalars(query)).all())

    async def _ask(self, element: str, began: datetime) -> None:
        waiting = and_(recall.c.state == State.STATE_WAITING, recall.c.storage_element == element)
        while rows := await self._claim(waiting, began):
            doubtful = [row for row in rows if row.request_uid]
            again = await self._look_for(element, doubtful) if doubtful else {}
            fresh = [row for row in rows if row.uid not in again]
            outcomes = list(again.values())
            if fresh:
                outcomes += await self._request(element, fresh)
            await self._settle(outcomes)

    async def _look_for(self, element: str, rows: Sequence[Row[Any]]) -> dict[str, Outcome]:
        """Return what has become of those that a tape system may have been asked for already, by uid."""
        told = await self._told(element, _ANY, rows)
        found = {row.uid: found_again(row, one, self._pace.patience) for row, one in zip(rows, told, strict=True)}
        return {uid: outcome for uid, outcome in found.items() if outcome is not None}

    async def _request(self, element: str, rows: Sequence[Row[Any]]) -> list[Outcome]:
        """Send one request for all of them."""
        uid = new_uid()
        async with self._database.write() as connection:
            values = {"uid": uid, "storage_element": element, "files": len(rows), "native_id": ""}
            await connection.execute(insert(recall_request).values(**values, create_time=datetime.now(UTC)))
            which = (in_values(recall.c.uid, [row.uid for row in rows]), recall.c.state == State.STATE_WAITING)
            noted = update(recall).where(*which).values(request_uid=uid).returning(recall.c.uid)
            wanted = set((await connection.scalars(noted)).all())
        # Some may have been cancelled a moment ago.
        rows = [row for row in rows if row.uid in wanted]
        if not rows:
            return []
        lifetime = timedelta(seconds=max(row.pin_seconds for row in rows))
        tape = await self._tape(element)
        if isinstance(tape, ProtocolFault):
            return [fault_outcome(row, tape, self._pace.patience) for row in rows]
        told = await tape.stage([row.path for row in rows], lifetime)
        native = next((one for one in told if isinstance(one, str)), "")
        async with self._database.write() as connection:
            statement = update(recall_request).where(recall_request.c.uid == uid).values(native_id=native)
            await connection.execute(statement)
        return [asked(row, uid, one, self._pace.patience) for row, one in zip(rows, told, strict=True)]

    # ---------------------------------------------------------------------------------------- following, telling

    async def _poll(self, element: str, native: str, rows: Sequence[Row[Any]]) -> list[Outcome]:
        told = await self._told(element, native, rows)
        return [answered(row, one, self._pace.patience) for row, one in zip(rows, told, strict=True)]

    async def _pay(self, element: str, native: str, rows: Sequence[Row[Any]]) -> list[Outcome]:
        """Tell a tape system what it need not do any more."""
        tape = await self._tape(element)
        outcomes: list[Outcome] = []
        for owed, some in itertools.groupby(sorted(rows, key=lambda row: str(row.owed)), lambda row: row.owed):
            group = list(some)
            paths = [row.path for row in group]
            if isinstance(tape, ProtocolFault):
                faults: Sequence[ProtocolFault | None] = [tape] * len(group)
            else:
                faults = await (tape.cancel if owed == "cancel" else tape.release)(native, paths)
            outcomes += [paid(row, fault, self._pace.patience) for row, fault in zip(group, faults, strict=True)]
        return outcomes

    async def _end_pins(self, now: datetime) -> None:
        """Let go of what need not be on disk any more."""
        over = and_(recall.c.state == State.STATE_ONLINE, recall.c.pin_time <= now)
        async with self._database.read() as connection:
            if (await connection.execute(select(recall.c.uid).where(over).limit(1))).first() is None:
                return
        released = {
            "state": State.STATE_RELEASED, "owed": "release", "due_time": now, "active_key": None, "state_time": now,
            "end_time": now,
        }  # fmt: skip
        async with self._database.write() as connection:
            rows = (await connection.execute(update(recall).where(over).values(released).returning(recall))).all()
            await self._log.append(connection, [recall_event(mapping(row)) for row in rows])

    # --------------------------------------------------------------------------------------------------- shared

    async def _told(self, element: str, native: str, rows: Sequence[Row[Any]]) -> Sequence[Recalling | ProtocolFault]:
        tape = await self._tape(element)
        if isinstance(tape, ProtocolFault):
            return [tape] * len(rows)
        return await tape.staging(native, [row.path for row in rows])

    async def _tape(self, name: str) -> Tape | ProtocolFault:
        element = (await self._elements.all()).get(name)
        if element is None:
            return ProtocolFault(Problem.CONFIGURATION, f"there is no StorageElement {name}")
        try:
            tape = self._protocols.of(element).tape
        except DomainError as error:
            return ProtocolFault(Problem.CONFIGURATION, error.message)
        return tape or ProtocolFault(Problem.CONFIGURATION, f"no access point of {name} can recall")

    async def _each_group(
        self,
        rows: Sequence[Row[Any]],
        action: Callable[[str, str, Sequence[Row[Any]]], Any],
    ) -> None:
        groups: dict[tuple[str, str], list[Row[Any]]] = {}
        for row in rows:
            groups.setdefault((row.storage_element, row.native_id), []).append(row)
        for (element, native), some in groups.items():
            await self._settle(await action(element, native, some))

    async def _claim(self, which: Any, began: datetime) -> Sequence[Row[Any]]:
        now = datetime.now(UTC)
        due = select(recall.c.uid).where(which, recall.c.due_time <= began)
        due = due.order_by(recall.c.due_time, recall.c.create_time, recall.c.uid).limit(_BATCH)
        async with self._database.read() as connection:
            if (await connection.execute(due.limit(1))).first() is None:
                return []
        async with self._database.write() as connection:
            rows = await claim(connection, recall, due, owner=self._owner, now=now, until=now + self._pace.lease)
        # What comes back from an update is in no order; the tape system gets them as they were wanted.
        return sorted(rows, key=lambda row: (row.create_time, row.uid))

    async def _settle(self, outcomes: Iterable[Outcome]) -> None:
        outcomes = [replace(one, queue_position=0) if one.state != State.STATE_REQUESTED else one for one in outcomes]
        if not outcomes:
            return
        columns = {name: recall.c[name].type for name in ("uid", "lease_epoch", *Outcome.columns)}
        async with self._database.write() as connection:
            new = rows_table(connection, columns, [one.row_values() for one in outcomes])
            statement = (
                update(recall)
                .where(recall.c.uid == new.c.uid, recall.c.lease_epoch == new.c.lease_epoch)
                .values(**{name: new.c[name] for name in Outcome.columns}, lease_owner=None, lease_expire_time=None)
                .returning(recall)
            )
            rows = [mapping(row) for row in (await connection.execute(statement)).all()]
            changed = {one.row.uid for one in outcomes if one.tells}
            await _bring_forward(connection, [row["file_uid"] for row in rows if row["state"] == State.STATE_ONLINE])
            await self._log.append(connection, [recall_event(row) for row in rows if row["uid"] in changed])
            await self._number(connection, {row["storage_element"] for row in rows})

    async def _number(self, connection: AsyncConnection, elements: Iterable[str]) -> None:
        """Count places in queues that the tape system does not tell."""
        waiting = and_(recall.c.state == State.STATE_REQUESTED, in_values(recall.c.storage_element, list(elements)))
        place = func.row_number().over(
            partition_by=recall.c.storage_element, order_by=(recall.c.create_time, recall.c.uid)
        )
        numbered = select(recall.c.uid, place.label("place")).where(waiting).subquery()
        statement = (
            update(recall)
            .where(recall.c.uid == numbered.c.uid, recall.c.position_estimated)
            .values(queue_position=numbered.c.place)
        )
        await connection.execute(statement)


async def _bring_forward(connection: AsyncConnection, files: Sequence[str]) -> None:
    """Let transfers go on that waited for these files."""
    if files:
        waits = (transfer.c.state == Transfer.STATE_WAITING, in_values(transfer.c.file_uid, files))
        statement = update(transfer).where(*waits, transfer.c.next_attempt_time > datetime.now(UTC))
        await connection.execute(statement.values(next_attempt_time=datetime.now(UTC)))


def _owed() -> Any:
    """Return the condition that a tape system is to be told something, and nobody wants the file again."""
    other = recall.alias("other")
    wanted_again = select(other.c.uid).where(
        other.c.active_key.is_not(None),
        other.c.storage_element == recall.c.storage_element,
        other.c.file_uid == recall.c.file_uid,
    )
    return and_(recall.c.owed != "", ~wanted_again.exists())
