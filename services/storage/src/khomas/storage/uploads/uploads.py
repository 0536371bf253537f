"""Uploads: opened, filled through the door or on the disk, given up, expired."""

import asyncio
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, and_, case, delete, literal, select, true, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.common.v1 import explanation_pb2
from khomas.api.storage.v1 import grant_pb2, storage_service_pb2
from khomas.kit.auth.principal import allows
from khomas.kit.boundary.call import current_principal
from khomas.kit.database import Database, in_values, insert_many
from khomas.kit.errors import DomainError
from khomas.kit.events import EventLog, NewEvent
from khomas.kit.idempotency import Once
from khomas.kit.ids import new_uids
from khomas.kit.leases import lock
from khomas.storage import elsewhere
from khomas.storage.checksums import Sums
from khomas.storage.elements.elements import Element, Elements, Protocols, Usage, forgotten
from khomas.storage.elements.space import Chooser, Usages, available, default_element
from khomas.storage.errors import (
    GrantRefused,
    ProtocolUnknown,
    StorageElementNotFound,
    StorageElementReadOnly,
    UploadNotFound,
    UploadState,
)
from khomas.storage.grants.granting import Granting
from khomas.storage.paths import STAGING
from khomas.storage.paths import staging as staging_path
from khomas.storage.protocols.interface import ProtocolFault
from khomas.storage.rows import mapping
from khomas.storage.tables import upload, uploaded_file
from khomas.storage.uploads import staging
from khomas.storage.uploads.explaining import explanation

log = logging.getLogger(__name__)

PREFIX = "uploads/"
State = grant_pb2.Upload.State
_EXPIRE_BATCH = 1000
_FINAL = (State.STATE_COMMITTED, State.STATE_ABANDONED)
# Counted from the end of the grants.
_RETENTION = timedelta(days=7)


class Uploads:
    """Opens uploads, knows what has arrived, and clears what was given up."""

    def __init__(
        self,
        database: Database,
        once: Once,
        log: EventLog,
        elements: Elements,
        protocols: Protocols,
        granting: Granting,
        default: str,
    ) -> None:
        self._database = database
        self._once = once
        self._log = log
        self._elements = elements
        self._protocols = protocols
        self._granting = granting
        self._usages = Usages()
        self._default = default

    async def create(
        self, request: storage_service_pb2.BatchCreateUploadsRequest
    ) -> storage_service_pb2.BatchCreateUploadsResponse:
        """Open uploads on the StorageElements that they prefer, all or none."""
        now = datetime.now(UTC)
        end = self._granting.end(request.lifetime if request.HasField("lifetime") else None, now)
        elements = await self._elements.all()
        async with self._database.read() as connection:
            used = await self._usages.read(connection)
        wanted = {name for one in request.uploads for name in one.storage_elements}
        here = {name: element for name, element in elements.items() if self._protocols.is_local(element)}
        default = default_element(here or elements, self._default)
        free = await self._free([element for name, element in elements.items() if name in wanted | {default}], used)
        chooser = Chooser(elements, free, default)
        places = [chooser.choose(one.storage_elements, one.reserve_bytes) for one in request.uploads]
        rows = self._rows(request.uploads, places, now, end)

        async def work(connection: AsyncConnection) -> storage_service_pb2.BatchCreateUploadsResponse:
            if gone := await forgotten(connection, {place.id for place in places}):
                raise StorageElementNotFound(storage_element=min(gone), nearest=sorted(elements.keys() - gone))
            await insert_many(connection, upload, rows)
            answers = [self._opened(row, place) for row, place in zip(rows, places, strict=True)]
            return storage_service_pb2.BatchCreateUploadsResponse(uploads=answers)

        answer = await self._once(request, storage_service_pb2.BatchCreateUploadsResponse, work)
        # Also for a repeated request: the first one may have ended before it came to this.
        folders = [Path(one.grant.local_path) for one in answer.uploads if one.grant.local_path]
        await asyncio.to_thread(staging.make_folders, folders)
        return answer

    async def get(self, names: Sequence[str]) -> list[grant_pb2.Upload]:
        """Read uploads of the caller with what has arrived; others are left out."""
        uids = [name.removeprefix(PREFIX) for name in names]
        async with self._database.read() as connection:
            rows = (await connection.execute(_with_files(uids).where(_mine()))).all()
        found: dict[str, grant_pb2.Upload] = {}
        for row in rows:
            message = found.setdefault(row.uid, upload_proto(row))
            if row.number is not None:
                message.files.add(
                    index=row.number,
                    size_bytes=row.size_bytes,
                    checksums={"adler32": row.adler32, "sha256": row.sha256, "content_digest": row.content_digest},
                )
        return [found[uid] for uid in dict.fromkeys(uids) if uid in found]

    async def renew(
        self, request: storage_service_pb2.BatchRenewUploadsRequest
    ) -> storage_service_pb2.BatchRenewUploadsResponse:
        """Let open uploads live for longer."""
        uids = [name.removeprefix(PREFIX) for name in request.names]
        end = self._granting.end(request.lifetime if request.HasField("lifetime") else None, datetime.now(UTC))
        expire_time = upload.c.expire_time
        later = case((expire_time > end, expire_time), else_=literal(end, expire_time.type))
        ours = (in_values(upload.c.uid, uids), _mine(), upload.c.state == State.STATE_OPEN)

        async def work(connection: AsyncConnection) -> storage_service_pb2.BatchRenewUploadsResponse:
            await lock(connection, upload, uids)
            statement = update(upload).where(*ours).values(expire_time=later).returning(upload)
            found = {row.uid: upload_proto(row) for row in (await connection.execute(statement)).all()}
            uploads = [found[uid] for uid in dict.fromkeys(uids) if uid in found]
            return storage_service_pb2.BatchRenewUploadsResponse(uploads=uploads)

        return await self._once(request, storage_service_pb2.BatchRenewUploadsResponse, work)

    async def explain(self, name: str) -> explanation_pb2.Explanation:
        """Say what an upload of the caller waits for, or why it is gone."""
        found = await self.get([name])
        async with self._database.read() as connection:
            query = select(upload).where(upload.c.uid == name.removeprefix(PREFIX), _mine())
            row = (await connection.execute(query)).one_or_none()
        if row is None or not found:
            raise UploadNotFound(name=name)
        return explanation(found[0], row, datetime.now(UTC))

    async def abandon(
        self, request: storage_service_pb2.BatchAbandonUploadsRequest
    ) -> storage_service_pb2.BatchAbandonUploadsResponse:
        """Give uploads up and delete their bytes."""
        uids = [name.removeprefix(PREFIX) for name in request.names]
        states: dict[str, Row[Any]] = {}

        async def work(connection: AsyncConnection) -> storage_service_pb2.BatchAbandonUploadsResponse:
            await self._give_up(connection, and_(in_values(upload.c.uid, uids), _mine()))
            rows = (await connection.execute(select(upload).where(in_values(upload.c.uid, uids), _mine()))).all()
            states.update({row.uid: row for row in rows})
            for uid in uids:
                if uid not in states:
                    raise UploadNotFound(name=PREFIX + uid)
                if states[uid].state != State.STATE_ABANDONED:
                    raise UploadState(name=PREFIX + uid, state=state_word(states[uid]))
            return storage_service_pb2.BatchAbandonUploadsResponse()

        answer = await self._once(request, storage_service_pb2.BatchAbandonUploadsResponse, work)
        await self.clear((row.uid, row.storage_element) for row in states.values())
        return answer

    async def expire(self) -> None:
        """Give up what was not committed in time."""
        now = datetime.now(UTC)
        old = select(upload.c.uid).where(upload.c.state == State.STATE_OPEN, upload.c.expire_time < now)
        async with self._database.write() as connection:
            gone = await self._give_up(connection, upload.c.uid.in_(old.limit(_EXPIRE_BATCH)))
        await self.clear(gone)

    async def sweep(self) -> None:
        """Clear on disks of this machine what became final in a process that died before it could clear.

        Elsewhere uploads are staged among what is hidden for other reasons, and tidied away with it when it is old.
        """
        for element in (await self._elements.all()).values():
            if not self._protocols.is_local(element):
                continue
            staged = await asyncio.to_thread(self._staged, element)
            # Most are open; of what nobody here knows nothing is deleted.
            final = select(upload.c.uid).where(in_values(upload.c.uid, staged), upload.c.state.in_(_FINAL))
            async with self._database.read() as connection:
                gone = (await connection.scalars(final)).all() if staged else []
            await self.clear((uid, element.id) for uid in gone)

    def _staged(self, element: Element) -> list[str]:
        """Return all uploads that have a staging folder. Blocks."""
        return staging.folders_in(self._protocols.local(element, STAGING))

    async def prune(self) -> None:
        """Forget uploads that have been final for long; their staging folders are swept by then."""
        before = datetime.now(UTC) - _RETENTION
        final = select(upload.c.uid).where(upload.c.state.in_(_FINAL), upload.c.expire_time < before)
        some = final.order_by(upload.c.uid).limit(_EXPIRE_BATCH).scalar_subquery()
        async with self._database.write() as connection:
            await connection.execute(delete(uploaded_file).where(uploaded_file.c.upload_uid.in_(some)))
            await connection.execute(delete(upload).where(upload.c.uid.in_(some)))

    async def receiver(self, uid: str) -> tuple[Row[Any], Element]:
        """Return an open upload and its StorageElement for the door; raise why it takes nothing."""
        async with self._database.read() as connection:
            row = (await connection.execute(select(upload).where(upload.c.uid == uid))).one_or_none()
        if row is None:
            raise UploadNotFound(name=PREFIX + uid)
        if row.state != State.STATE_OPEN or row.commit_uid is not None:
            raise UploadState(name=PREFIX + uid, state=state_word(row))
        if row.expire_time <= datetime.now(UTC):
            raise GrantRefused
        return row, (await self._elements.all())[row.storage_element]

    async def stamp(self, uid: str, index: int) -> str | None:
        """Return the identity of what has arrived last: elsewhere, the name under which it is hidden."""
        query = select(uploaded_file.c.stamp).where(uploaded_file.c.upload_uid == uid, uploaded_file.c.number == index)
        async with self._database.read() as connection:
            return (await connection.execute(query)).scalar()

    async def received(self, uid: str, index: int, sums: Sums, stamp: str) -> None:
        """Note that a file has arrived, or has arrived again."""
        row = {
            "upload_uid": uid,
            "number": index,
            "size_bytes": sums.size_bytes,
            "adler32": sums.adler32,
            "sha256": sums.sha256,
            "content_digest": "",
            "stamp": stamp,
        }
        insert = (postgresql if self._database.dialect == "postgresql" else sqlite).insert(uploaded_file)
        statement = insert.values(row).on_conflict_do_update(index_elements=["upload_uid", "number"], set_=row)
        async with self._database.write() as connection:
            await connection.execute(statement)

    async def forgotten(self, uid: str, index: int) -> None:
        """Note that a file was taken away again."""
        statement = uploaded_file.delete().where(uploaded_file.c.upload_uid == uid, uploaded_file.c.number == index)
        async with self._database.write() as connection:
            await connection.execute(statement)

    async def clear(
        self,
        gone: Iterable[tuple[str, str]],
        rows: Sequence[Row[Any]] | None = None,
        named: Collection[str] = (),
    ) -> None:
        """Delete what is staged of final uploads, each given as its uid and StorageElement.

        Who knows their rows gives them; what was `named` is staged no more.
        """
        elements = await self._elements.all()
        known = [(uid, elements[element]) for uid, element in gone if element in elements]
        folders = [folder for uid, element in known if (folder := self._folder(element, uid)) is not None]
        await asyncio.to_thread(staging.remove_folders, folders)
        there = {uid: element for uid, element in known if not self._protocols.is_local(element)}
        if there:
            found = await self._arrived(list(there)) if rows is None else rows
            left = [row for row in found if row.uid in there and row.stamp and row.stamp not in named]
            await self._clear_elsewhere(there, left)

    async def _arrived(self, uids: Sequence[str]) -> list[Row[Any]]:
        query: Select[Any] = select(uploaded_file.c.upload_uid.label("uid"), uploaded_file.c.stamp)
        async with self._database.read() as connection:
            return list((await connection.execute(query.where(in_values(uploaded_file.c.upload_uid, uids)))).all())

    async def _clear_elsewhere(self, uploads: Mapping[str, Element], rows: Sequence[Row[Any]]) -> None:
        staged: dict[str, list[str]] = {}
        for row in rows:
            staged.setdefault(uploads[row.uid].id, []).append(row.stamp)
        for element in uploads.values():
            try:
                await elsewhere.remove(self._protocols.of(element), staged.pop(element.id, []))
            except (ProtocolFault, ProtocolUnknown) as error:
                log.warning("upload.left_behind", extra={"element": element.id, "error": str(error)})

    async def _free(self, candidates: Sequence[Element], used: dict[str, Usage]) -> dict[str, int | DomainError | None]:
        rooms = await self._protocols.rooms(candidates)
        return {
            element.id: room
            if isinstance(room, DomainError)
            else StorageElementReadOnly(storage_element=element.id)
            if not self._protocols.of(element).abilities.writes
            else available(element, used.get(element.id, Usage()), room)
            for element, room in zip(candidates, rooms, strict=True)
        }

    def _rows(
        self, wanted: Sequence[grant_pb2.Upload], places: Sequence[Element], now: datetime, end: datetime
    ) -> list[dict[str, Any]]:
        owner = current_principal().subject
        return [
            {
                "uid": uid,
                "storage_element": place.id,
                "max_files": one.max_files or 1,
                "reserve_bytes": one.reserve_bytes,
                "origin": one.origin,
                "owner": owner,
                "state": State.STATE_OPEN,
                "create_time": now,
                "expire_time": end,
            }
            for uid, one, place in zip(new_uids(len(wanted)), wanted, places, strict=True)
        ]

    def _opened(self, row: dict[str, Any], place: Element) -> grant_pb2.Upload:
        message = _message(row)
        folder = self._folder(place, row["uid"])
        message.grant.CopyFrom(self._granting.upload(row["uid"], place.id, folder, row["expire_time"]))
        return message

    def _folder(self, element: Element, uid: str) -> Path | None:
        """Return where files of an upload are placed by whoever mounts the storage."""
        return self._protocols.local(element, staging_path(uid)) if self._protocols.is_local(element) else None

    async def _give_up(self, connection: AsyncConnection, which: Any) -> list[tuple[str, str]]:
        statement = (
            update(upload)
            .where(which, upload.c.state == State.STATE_OPEN, upload.c.commit_uid.is_(None))
            .values(state=State.STATE_ABANDONED)
            .returning(upload)
        )
        rows = (await connection.execute(statement)).all()
        await self._log.append(connection, [upload_event(row, "abandoned") for row in rows])
        return [(row.uid, row.storage_element) for row in rows]


def state_word(row: Row[Any]) -> str:
    """Return the state of an upload as people read it."""
    if row.state == State.STATE_OPEN and row.commit_uid is not None:
        return "being committed"
    return State.Name(row.state).removeprefix("STATE_")


def upload_event(row: Row[Any], verb: str) -> NewEvent:
    """Tell that an upload has reached a final state."""
    return NewEvent(f"storage.upload.{verb}", PREFIX + row.uid, row.uid, row.origin, upload_proto(row))


def upload_proto(row: Row[Any]) -> grant_pb2.Upload:
    """Return an upload without its grant, which is a secret of the one who opened it."""
    return _message(mapping(row))


def _message(row: Any) -> grant_pb2.Upload:
    return grant_pb2.Upload(
        name=PREFIX + row["uid"],
        storage_elements=[row["storage_element"]],
        max_files=row["max_files"],
        reserve_bytes=row["reserve_bytes"],
        origin=row["origin"],
        state=row["state"],
        create_time=row["create_time"],
        expire_time=row["expire_time"],
        owner=row["owner"],
    )


def _mine() -> ColumnElement[bool]:
    """Return the condition that an upload is the caller's; an administrator sees all."""
    principal = current_principal()
    return true() if allows(principal, "admin") else upload.c.owner == principal.subject


def _with_files(uids: Sequence[str]) -> Select[Any]:
    joined = upload.outerjoin(uploaded_file, uploaded_file.c.upload_uid == upload.c.uid)
    files = [column for column in uploaded_file.c if column is not uploaded_file.c.upload_uid]
    return (
        select(upload, *files)
        .select_from(joined)
        .where(in_values(upload.c.uid, uids))
        .order_by(upload.c.uid, uploaded_file.c.number)
    )
