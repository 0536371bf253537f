"""StorageElements as operators make, change and forget them, and what a look at them says."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Row, delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.storage.v1 import drain_pb2, storage_service_pb2
from khomas.api.storage.v1 import storage_element_pb2 as pb
from khomas.kit.database import Database
from khomas.kit.errors import EtagMismatch, FieldInvalid
from khomas.kit.events import EventLog, NewEvent
from khomas.kit.filtering import fields, where
from khomas.kit.idempotency import Once
from khomas.kit.ids import new_uid
from khomas.kit.paging import Ordering, list_page
from khomas.storage.elements.access_points import AccessPoint
from khomas.storage.elements.elements import (
    PREFIX,
    Element,
    Elements,
    Protocols,
    Usage,
    element_of,
    element_proto,
    known,
)
from khomas.storage.elements.emptiness import Emptiness, unchanged
from khomas.storage.elements.forecast import full_time, growths, note
from khomas.storage.elements.space import available, usages
from khomas.storage.errors import (
    StorageElementExists,
    StorageElementNotEmpty,
    StorageElementNotFound,
    StorageElementUnreachable,
)
from khomas.storage.protocols.interface import Room
from khomas.storage.rows import mapping
from khomas.storage.rules.tables import drain
from khomas.storage.tables import storage_element

_FIELDS = {
    "name": fields.text(PREFIX + storage_element.c.id),
    "site": fields.text(storage_element.c.site),
    "media": fields.enum(storage_element.c.media, pb.StorageElement.Media),
    "read_only": fields.boolean(storage_element.c.read_only),
}
_ORDER = Ordering(fields={}, unique=storage_element.c.id)
_CHANGEABLE = (
    "description",
    "site",
    "access_points",
    "read_only",
    "capacity_bytes",
    "labels",
    "weight",
    "high_watermark",
    "low_watermark",
)
LOCAL = "local"
# Its id is not used again: what is said of it anywhere stays true.
_DECOMMISSIONED = drain_pb2.Drain.STATE_DECOMMISSIONED


# Well below an hour: samples are taken once for each.
_NOTED = timedelta(minutes=10)


class Administration:
    """Keeps the list of StorageElements."""

    def __init__(
        self,
        database: Database,
        once: Once,
        log: EventLog,
        elements: Elements,
        emptiness: Emptiness,
        protocols: Protocols,
    ) -> None:
        self._database = database
        self._once = once
        self._log = log
        self._elements = elements
        self._emptiness = emptiness
        self._protocols = protocols
        self._note_at = datetime.min.replace(tzinfo=UTC)

    async def create(self, request: storage_service_pb2.CreateStorageElementRequest) -> pb.StorageElement:
        """Make a StorageElement known after a first look at it."""
        row = _new_row(request.storage_element)
        self._protocols.check(map(AccessPoint.stored, row["access_points"]))
        looked = await self._look(row)

        async def work(connection: AsyncConnection) -> pb.StorageElement:
            tombstone = select(drain.c.id).where(drain.c.id == row["id"], drain.c.state == _DECOMMISSIONED)
            if (await connection.execute(tombstone)).first() is not None:
                raise StorageElementExists(storage_element=row["id"])
            try:
                await connection.execute(insert(storage_element), row | looked)
            except IntegrityError as error:
                raise StorageElementExists(storage_element=row["id"]) from error
            return await self._changed(connection, row["id"])

        answer = await self._once(request, pb.StorageElement, work)
        self._elements.forget()
        return answer

    async def get(self, name: str) -> pb.StorageElement:
        """Read one with its space and health."""
        element = known(await self._elements.all(), name.removeprefix(PREFIX))
        async with self._database.read() as connection:
            (message,) = await _shown(connection, [element])
        return message

    async def page(
        self, request: storage_service_pb2.ListStorageElementsRequest
    ) -> storage_service_pb2.ListStorageElementsResponse:
        """Read a page of them."""
        query = select(storage_element).where(where(request.filter, _FIELDS))
        async with self._database.read() as connection:
            page = await list_page(connection, query, request, _ORDER, default_size=1000)
            found = await _shown(connection, [_record(row) for row in page.rows])
        return storage_service_pb2.ListStorageElementsResponse(
            storage_elements=found, next_page_token=page.next_page_token
        )

    async def update(self, request: storage_service_pb2.UpdateStorageElementRequest) -> pb.StorageElement:
        """Change some fields."""
        given = request.storage_element
        stored = known(await self._elements.all(), given.name.removeprefix(PREFIX))
        values = _changes(given, request.update_mask.paths)
        if "access_points" in values:
            self._protocols.check(map(AccessPoint.stored, values["access_points"]))
            await self._protocols.room(_with(stored, values))

        async def work(connection: AsyncConnection) -> pb.StorageElement:
            statement = update(storage_element).where(storage_element.c.id == stored.id)
            if given.etag:
                statement = statement.where(storage_element.c.version == _version(given))
            values["version"] = storage_element.c.version + 1
            if not (await connection.execute(statement.values(update_time=datetime.now(UTC), **values))).rowcount:
                raise EtagMismatch(name=given.name)
            return await self._changed(connection, stored.id)

        answer = await self._once(request, pb.StorageElement, work)
        self._elements.forget()
        return answer

    async def delete(
        self, request: storage_service_pb2.DeleteStorageElementRequest
    ) -> storage_service_pb2.DeleteStorageElementResponse:
        """Forget an empty one."""
        name = request.name.removeprefix(PREFIX)
        came = await self._emptiness.looked(name)

        async def work(connection: AsyncConnection) -> storage_service_pb2.DeleteStorageElementResponse:
            if not (await connection.execute(delete(storage_element).where(storage_element.c.id == name))).rowcount:
                raise StorageElementNotFound(storage_element=name, nearest=list(await self._elements.all()))
            if came is None or not await unchanged(connection, name, came):
                used = (await usages(connection)).get(name, Usage())
                raise StorageElementNotEmpty(storage_element=name, file_count=used.file_count)
            return storage_service_pb2.DeleteStorageElementResponse()

        answer = await self._once(request, storage_service_pb2.DeleteStorageElementResponse, work)
        self._elements.forget()
        return answer

    async def ensure_local(self, root: Path) -> None:
        """Make the StorageElement `local` of an embedded installation, or follow its folder when that has moved."""
        folder = await asyncio.to_thread(_made, root)
        points = [AccessPoint("posix", folder).row()]
        wanted = pb.StorageElement(name=PREFIX + LOCAL, site=LOCAL, media=pb.StorageElement.MEDIA_DISK)
        wanted.access_points.add(protocol="posix", address=folder)
        row = _new_row(wanted)
        looked = await self._look(row)
        moved = update(storage_element).where(storage_element.c.id == LOCAL).values(access_points=points, **looked)
        async with self._database.write() as connection:
            if not (await connection.execute(moved)).rowcount:
                await connection.execute(insert(storage_element), row | looked)
        self._elements.forget()

    async def check(self) -> None:
        """Look at all of them and note what is seen; tell the world when one comes or goes."""
        elements = list((await self._elements.all()).values())
        rooms = await self._protocols.rooms(elements)
        async with self._database.write() as connection:
            for element, room in zip(elements, rooms, strict=True):
                seen = _seen(room)
                statement = update(storage_element).where(storage_element.c.id == element.id)
                await connection.execute(statement.values(**seen))
                if seen["reachable"] != element.reachable:
                    await self._changed(connection, element.id)
            now = datetime.now(UTC)
            if now >= self._note_at:
                await note(connection, [element.id for element in elements], now)
                self._note_at = now + _NOTED
        self._elements.forget()

    async def _look(self, row: dict[str, Any]) -> dict[str, Any]:
        placeholder = {"free_bytes": -1, "reachable": False, "message": "", "check_time": row["create_time"]}
        points = tuple(map(AccessPoint.stored, row["access_points"]))
        return _seen(await self._protocols.room(Element(**{**row, **placeholder, "access_points": points})))

    async def _changed(self, connection: AsyncConnection, name: str) -> pb.StorageElement:
        """Read one back and log the event of its change."""
        row = (await connection.execute(select(storage_element).where(storage_element.c.id == name))).one()
        (message,) = await _shown(connection, [element_of(row)])
        event = NewEvent("storage.element.changed", message.name, row.uid, "", message)
        await self._log.append(connection, [event])
        return message


async def _shown(connection: AsyncConnection, elements: Sequence[Element]) -> list[pb.StorageElement]:
    """Return StorageElements as callers see them, with two statements."""
    now = datetime.now(UTC)
    used = await usages(connection)
    growing = await growths(connection, {name: one.used_bytes for name, one in used.items()}, now)
    found = []
    for element in elements:
        usage, growth = used.get(element.id, Usage()), growing.get(element.id, 0.0)
        message = element_proto(element, usage)
        message.space.growth_bytes_per_day = round(growth)
        free = element.free_bytes if element.reachable and element.free_bytes >= 0 else None
        if (full := full_time(growth, available(element, usage, Room(free, None)), now)) is not None:
            message.space.full_time.FromDatetime(full)
        found.append(message)
    return found


def _record(row: Row[Any]) -> Element:
    """Return a row that has the position of a page after its columns."""
    values = {column.name: mapping(row)[column.name] for column in storage_element.c}
    values["access_points"] = tuple(map(AccessPoint.stored, values["access_points"]))
    return Element(**values)


def _new_row(given: pb.StorageElement) -> dict[str, Any]:
    now = datetime.now(UTC)
    return {
        "id": given.name.removeprefix(PREFIX),
        "uid": new_uid(),
        "description": given.description,
        "site": given.site,
        "media": given.media,
        "access_points": [AccessPoint.of(point).row() for point in given.access_points],
        "read_only": given.read_only,
        "capacity_bytes": given.capacity_bytes,
        "labels": dict(given.labels),
        "weight": given.weight,
        "high_watermark": given.high_watermark,
        "low_watermark": given.low_watermark,
        "draining": False,
        "create_time": now,
        "update_time": now,
        "version": 1,
    }


def _seen(room: Room | StorageElementUnreachable) -> dict[str, Any]:
    now = datetime.now(UTC)
    if isinstance(room, StorageElementUnreachable):
        message = room.metadata.get("message", room.message)
        return {"reachable": False, "message": message, "check_time": now}
    free = -1 if room.free_bytes is None else room.free_bytes
    return {"reachable": True, "message": "", "check_time": now, "free_bytes": free}


def _changes(given: pb.StorageElement, paths: Sequence[str]) -> dict[str, Any]:
    if not paths:
        raise FieldInvalid.of("update_mask", f"name at least one of {', '.join(_CHANGEABLE)}")
    for path in paths:
        if path not in _CHANGEABLE:
            raise FieldInvalid.of("update_mask", f"{path} cannot be changed; these can: {', '.join(_CHANGEABLE)}")
    row = _new_row(given)
    return {path: row[path] for path in paths}


def _with(element: Element, values: dict[str, Any]) -> Element:
    points = tuple(map(AccessPoint.stored, values["access_points"]))
    row = {name: getattr(element, name) for name in Element.__slots__}
    return Element(**{**row, "access_points": points})


def _version(given: pb.StorageElement) -> int:
    # An etag that is no number is of nothing that we ever stored.
    return int(given.etag) if given.etag.isdecimal() else -1


def _made(root: Path) -> str:
    root.mkdir(parents=True, exist_ok=True)
    return str(root.absolute())
