"""Copies on tape that are wanted on disk, as they are stored: one active recall for each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import case, func, update
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.catalog.v1 import file_pb2
from khomas.api.storage.v1 import recall_pb2, storage_element_pb2
from khomas.kit.boundary.status import status_of
from khomas.kit.database import insert_new, rows_table
from khomas.kit.events import EventLog
from khomas.kit.ids import new_uids
from khomas.storage.elements.elements import Element
from khomas.storage.recalls.errors import NotOnTape
from khomas.storage.recalls.messages import State, recall_event
from khomas.storage.recalls.tables import recall
from khomas.storage.rows import mapping, mappings


@dataclass(frozen=True, slots=True)
class Wanted:
    """A copy on tape that is wanted on disk."""

    file: file_pb2.File
    storage_element: str
    path: str

    @property
    def key(self) -> str:
        """Of which there is one active recall only."""
        return f"{self.storage_element}/{self.file.uid}"


async def stored(
    connection: AsyncConnection, log: EventLog, wanted: Sequence[Wanted], origin: str, owner: str, lifetime: timedelta
) -> dict[str, Mapping[str, Any]]:
    """Return the active recalls of these, by key, the missing ones made now."""
    now = datetime.now(UTC)
    fresh = [_new(one, uid, origin, owner, lifetime, now) for one, uid in zip(wanted, _uids(len(wanted)), strict=True)]
    made = {row.active_key: mapping(row) for row in await insert_new(connection, recall, fresh, *recall.c)}
    await log.append(connection, [recall_event(row) for row in made.values()])
    old = [one.key for one in wanted if one.key not in made]
    if not old:
        return made
    return made | await _prolonged(connection, old, lifetime, now)


async def _prolonged(
    connection: AsyncConnection, keys: Sequence[str], lifetime: timedelta, now: datetime
) -> dict[str, Mapping[str, Any]]:
    """Give active recalls at least so much time from now."""
    seconds = lifetime.total_seconds()
    types = {"key": recall.c.active_key.type, "until": recall.c.pin_time.type}
    new = rows_table(connection, types, [(key, now + lifetime) for key in keys])
    longer = func.coalesce(case((recall.c.pin_time > new.c.until, recall.c.pin_time), else_=new.c.until), new.c.until)
    statement = (
        update(recall)
        .where(recall.c.active_key == new.c.key)
        .values(
            pin_seconds=case((recall.c.pin_seconds > seconds, recall.c.pin_seconds), else_=seconds),
            pin_time=case((recall.c.state == State.STATE_ONLINE, longer), else_=recall.c.pin_time),
        )
        .returning(recall)
    )
    return {row["active_key"]: row for row in mappings(await connection.execute(statement))}


def on_tape(file: file_pb2.File, elements: Mapping[str, Element], wanted: str = "") -> Wanted | Any:
    """Return the copy to recall, or the status that says that there is none."""
    for replica in file.replicas:
        element = elements.get(replica.storage_element)
        good = replica.state == file_pb2.Replica.STATE_AVAILABLE and wanted in ("", replica.storage_element)
        if good and element is not None and element.media == storage_element_pb2.StorageElement.MEDIA_TAPE:
            return Wanted(file, element.id, replica.path)
    return status_of(NotOnTape(file=file.name))


def _new(one: Wanted, uid: str, origin: str, owner: str, lifetime: timedelta, now: datetime) -> dict[str, Any]:
    return {
        "uid": uid,
        "active_key": one.key,
        "file": one.file.name,
        "file_uid": one.file.uid,
        "storage_element": one.storage_element,
        "path": one.path,
        "size_bytes": one.file.size_bytes,
        "state": State.STATE_WAITING,
        "reason": recall_pb2.RECALL_REASON_GATHERING,
        "message": "",
        "request_uid": "",
        "native_id": "",
        "owed": "",
        "attempts": 0,
        "queue_position": 0,
        "position_estimated": False,
        "pin_seconds": lifetime.total_seconds(),
        "pin_time": None,
        "due_time": now,
        "origin": origin,
        "owner": owner,
        "create_time": now,
        "state_time": now,
        "end_time": None,
    }


def _uids(number: int) -> Sequence[str]:
    return new_uids(number) if number else ()
