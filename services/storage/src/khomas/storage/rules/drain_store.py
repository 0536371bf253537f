"""Drains as operators begin, read and take them back."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.common.v1 import explanation_pb2
from khomas.api.storage.v1 import drain_pb2, transfer_pb2
from khomas.api.storage.v1 import placement_service_pb2 as pb
from khomas.kit.boundary.call import current_principal
from khomas.kit.database import Database
from khomas.kit.events import EventLog, NewEvent
from khomas.kit.idempotency import Once
from khomas.kit.ids import new_uid
from khomas.storage.deletions.taking_back import take_back
from khomas.storage.elements.elements import PREFIX as ELEMENTS
from khomas.storage.elements.elements import Elements, known
from khomas.storage.elements.emptiness import kept_for_rules
from khomas.storage.errors import DrainNotFound, DrainState
from khomas.storage.rows import mapping
from khomas.storage.rules.events import touch
from khomas.storage.rules.placing import CopyState
from khomas.storage.rules.protection import decide_alone
from khomas.storage.rules.tables import drain, rule_copy
from khomas.storage.tables import deletion, replica, storage_element

PREFIX = "drains/"
State = drain_pb2.Drain.State
_WAITING = transfer_pb2.Deletion.STATE_WAITING
Remedy = explanation_pb2.Remedy


class Drains:
    """Begins drains and tells how far they are; the work is done elsewhere."""

    def __init__(self, database: Database, once: Once, log: EventLog, elements: Elements) -> None:
        self._database = database
        self._once = once
        self._log = log
        self._elements = elements

    async def begin(self, request: pb.DrainStorageElementRequest) -> drain_pb2.Drain:
        """Begin to empty a StorageElement; one that is being emptied may be decommissioned besides."""
        self._elements.forget()
        element = known(await self._elements.all(), request.name.removeprefix(ELEMENTS))
        now = datetime.now(UTC)

        async def work(connection: AsyncConnection) -> drain_pb2.Drain:
            await decide_alone(connection)
            there = select(func.count()).where(replica.c.storage_element == element.id)
            again = {
                "state": State.STATE_DRAINING,
                "decommission": request.decommission,
                "due_time": now,
                "after_file": "",
                "end_time": None,
            }
            begun = {
                **again,
                "id": element.id,
                "uid": new_uid(),
                "files_at_start": (await connection.execute(there)).scalar_one(),
                "message": "",
                "owner": current_principal().subject,
                "create_time": now,
            }
            if not (await connection.execute(update(drain).where(drain.c.id == element.id).values(again))).rowcount:
                await connection.execute(insert(drain), begun)
            await _set_draining(connection, element.id, draining=True)
            await move_copies(connection, element.id)
            return await told(connection, self._log, element.id)

        answer = await self._once(request, drain_pb2.Drain, work)
        self._elements.forget()
        return answer

    async def cancel(self, request: pb.CancelDrainRequest) -> drain_pb2.Drain:
        """Let a StorageElement take files again; what was to be deleted there stays."""
        name, now = request.name.removeprefix(PREFIX), datetime.now(UTC)

        async def work(connection: AsyncConnection) -> drain_pb2.Drain:
            await decide_alone(connection)
            row = await read(connection, name)
            if row["state"] == State.STATE_DECOMMISSIONED:
                raise DrainState(name=request.name, state="DECOMMISSIONED")
            ended = {"state": State.STATE_CANCELLED, "end_time": now, "message": ""}
            await connection.execute(update(drain).where(drain.c.id == name).values(ended))
            await _set_draining(connection, name, draining=False)
            await take_back(connection, self._log, "The drain was taken back.", deletion.c.storage_element == name)
            back = update(rule_copy).where(rule_copy.c.moving_from == name).values(state=CopyState.PENDING)
            await touch(connection, (await connection.scalars(back.returning(rule_copy.c.rule_uid))).all())
            return await told(connection, self._log, name)

        answer = await self._once(request, drain_pb2.Drain, work)
        self._elements.forget()
        return answer

    async def get(self, name: str) -> drain_pb2.Drain:
        """Read how far one is."""
        async with self._database.read() as connection:
            return await drain_proto(connection, await read(connection, name.removeprefix(PREFIX)))

    async def explain(self, name: str) -> explanation_pb2.Explanation:
        """Tell why a StorageElement is not empty yet."""
        one = await self.get(name)
        answer = explanation_pb2.Explanation(
            subject=one.name,
            state=State.Name(one.state).removeprefix("STATE_"),
            summary=f"{one.files_left} of {one.files_at_start} files are left, {one.bytes_left} bytes.",
        )
        answer.since.CopyFrom(one.create_time)
        if one.waiting_for_rules:
            answer.reason = "WAIT_RULES"
            answer.details.append(f"{one.waiting_for_rules} copies of rules have not arrived elsewhere yet")
            answer.remedies.add(
                who="you", action="See which rules are stuck.", command='khomas rule ls --filter "state = STUCK"'
            )
        if one.being_deleted:
            answer.reason = answer.reason or "WAIT_DELETION"
            answer.details.append(f"{one.being_deleted} deletions are planned")
            answer.remedies.add(who="nobody: it resolves itself", action="They are done one after the other.")
        if one.message:
            answer.reason = answer.reason or "NO_COPY_ELSEWHERE"
            answer.details.append(one.message)
            answer.remedies.add(
                who="operator", action="Make room on other StorageElements, or repair.", command="khomas transfer ls"
            )
        return answer


async def read(connection: AsyncConnection, name: str) -> Mapping[str, Any]:
    """Read one row, or raise DrainNotFound."""
    row = (await connection.execute(select(drain).where(drain.c.id == name))).one_or_none()
    if row is None:
        raise DrainNotFound(name=PREFIX + name)
    return mapping(row)


async def told(connection: AsyncConnection, log: EventLog, name: str) -> drain_pb2.Drain:
    """Read one back and log the event of its change."""
    row = await read(connection, name)
    message = await drain_proto(connection, row)
    await log.append(connection, [NewEvent("storage.drain.changed", message.name, row["uid"], "", message)])
    return message


async def move_copies(connection: AsyncConnection, name: str) -> None:
    """Have rules choose other places for what they have on a StorageElement; it is kept until that has come."""
    await decide_alone(connection)
    columns = rule_copy.c
    leaving = {
        "state": CopyState.PENDING,
        "moving_from": columns.storage_element,
        "storage_element": "",
        "transfer_uid": "",
    }
    there = (columns.storage_element == name, columns.state == CopyState.OK)
    moved = update(rule_copy).where(*there).values(leaving).returning(columns.rule_uid)
    await touch(connection, (await connection.scalars(moved)).all())


async def drain_proto(connection: AsyncConnection, row: Mapping[str, Any]) -> drain_pb2.Drain:
    """Return a drain as callers see it, counted now."""
    name = row["id"]
    left = select(func.count(), func.coalesce(func.sum(replica.c.size_bytes), 0)).where(
        replica.c.storage_element == name
    )
    going = select(func.count()).where(deletion.c.storage_element == name, deletion.c.state == _WAITING)
    files, size_bytes = (await connection.execute(left)).one()
    message = drain_pb2.Drain(
        name=PREFIX + name,
        state=row["state"],
        decommission=row["decommission"],
        files_at_start=row["files_at_start"],
        files_left=int(files),
        bytes_left=int(size_bytes),
        waiting_for_rules=(await connection.execute(kept_for_rules(name))).scalar_one(),
        being_deleted=(await connection.execute(going)).scalar_one(),
        message=row["message"],
        owner=row["owner"],
    )
    message.create_time.FromDatetime(row["create_time"])
    if row["end_time"] is not None:
        message.end_time.FromDatetime(row["end_time"])
    return message


async def _set_draining(connection: AsyncConnection, name: str, *, draining: bool) -> None:
    values = {"draining": draining, "version": storage_element.c.version + 1}
    await connection.execute(update(storage_element).where(storage_element.c.id == name).values(values))
