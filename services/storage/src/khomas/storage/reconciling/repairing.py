"""Does the repairs that were accepted, in batches; what waits or fails says why, and is tried again."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import grpc
from sqlalchemy import Row, select, update

from khomas.api.storage.v1 import incident_pb2 as pb
from khomas.kit.database import Database, rows_table
from khomas.kit.errors import DomainError
from khomas.kit.events import EventLog
from khomas.kit.leases import claim
from khomas.storage.elements.elements import Element, Elements
from khomas.storage.protocols.interface import ProtocolFault
from khomas.storage.reconciling.moving_aside import MovingAside
from khomas.storage.reconciling.recording import incident_event
from khomas.storage.reconciling.replacing import Replacing
from khomas.storage.reconciling.steps import Step, again
from khomas.storage.reconciling.tables import incident
from khomas.storage.rows import mappings

State = pb.Incident.State
_BATCH: Final = 200
_MAX_PAUSE: Final = timedelta(hours=1)
_LEASE: Final = timedelta(hours=1)
_Action = Callable[[Element, Sequence[Row[Any]]], Awaitable[Sequence[Step]]]


@dataclass(frozen=True, slots=True)
class Repairing:
    """Takes incidents that are REPAIRING, StorageElement by StorageElement and repair by repair."""

    database: Database
    log: EventLog
    elements: Elements
    replacing: Replacing
    moving_aside: MovingAside
    owner: str
    pause: timedelta

    async def work(self) -> None:
        """Do everything that is due."""
        while rows := await self._claim():
            groups: dict[tuple[str, int], list[Row[Any]]] = {}
            for row in rows:
                groups.setdefault((row.storage_element, row.repair), []).append(row)
            for (name, repair), some in groups.items():
                await self._settle(await self._done(name, repair, some))

    async def _claim(self) -> Sequence[Row[Any]]:
        now = datetime.now(UTC)
        due = (
            select(incident.c.uid)
            .where(incident.c.state == State.STATE_REPAIRING, incident.c.next_attempt_time <= now)
            .order_by(incident.c.next_attempt_time)
            .limit(_BATCH)
        )
        async with self.database.read() as connection:
            if (await connection.execute(due.limit(1))).first() is None:
                return []
        async with self.database.write() as connection:
            return await claim(connection, incident, due, owner=self.owner, now=now, until=now + _LEASE)

    async def _done(self, name: str, repair: int, rows: Sequence[Row[Any]]) -> Sequence[Step]:
        element = (await self.elements.all()).get(name)
        if element is None:
            return [again(row, f"there is no StorageElement {name}") for row in rows]
        try:
            return await self._actions()[repair](element, rows)
        except (ProtocolFault, DomainError) as error:
            return [again(row, error.message) for row in rows]
        except grpc.aio.AioRpcError as error:
            return [again(row, f"the catalogue does not answer: {error.details()}") for row in rows]

    def _actions(self) -> Mapping[int, _Action]:
        return {
            pb.REPAIR_VERIFY: self.replacing.verify,
            pb.REPAIR_COPY: self.replacing.copy,
            pb.REPAIR_DECLARE_LOST: self.moving_aside.declare_lost,
            pb.REPAIR_REGISTER: self.moving_aside.register,
            pb.REPAIR_QUARANTINE: self.moving_aside.quarantine,
            pb.REPAIR_DELETE: self.moving_aside.delete,
            pb.REPAIR_RESTORE: self.moving_aside.restore,
            pb.REPAIR_DISCARD: self.moving_aside.discard,
        }

    async def _settle(self, steps: Sequence[Step]) -> None:
        now = datetime.now(UTC)
        columns = {name: incident.c[name].type for name in _COLUMNS}
        rows = [self._row(one, now) for one in steps]
        async with self.database.write() as connection:
            new = rows_table(connection, columns, rows)
            same = (incident.c.uid == new.c.uid, incident.c.lease_epoch == new.c.lease_epoch)
            free = {"lease_owner": None, "lease_expire_time": None}
            statement = (
                update(incident)
                .where(*same, incident.c.state == State.STATE_REPAIRING)
                .values({name: new.c[name] for name in _COLUMNS if name not in ("uid", "lease_epoch")} | free)
                .returning(incident)
            )
            changed = mappings(await connection.execute(statement))
            await self.log.append(connection, [incident_event(row) for row in changed])

    def _row(self, one: Step, now: datetime) -> tuple[Any, ...]:
        final = one.state == State.STATE_RESOLVED
        attempts = one.row.attempts + (1 if one.failed else 0)
        pause = min(self.pause * 2 ** min(attempts, 10), _MAX_PAUSE) if one.failed else self.pause
        return (
            *(one.row.uid, one.row.lease_epoch, one.state),
            *(
                None if final else one.row.open_key,
                one.message,
                one.row.transfer if one.transfer is None else one.transfer,
            ),
            one.row.quarantine_path if one.quarantine_path is None else one.quarantine_path,
            *(attempts, now + pause, now if final else None),
        )


_COLUMNS: Final = (
    *("uid", "lease_epoch", "state", "open_key", "message", "transfer"),
    *("quarantine_path", "attempts", "next_attempt_time", "end_time"),
)
