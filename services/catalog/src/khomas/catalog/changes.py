"""Changes of files that exist: metadata and replicas, each a constant number of statements."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, delete, exists, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.catalog.v1 import catalog_service_pb2 as pb
from khomas.api.catalog.v1.file_pb2 import File
from khomas.catalog.creation import REPLICA, replica_rows
from khomas.catalog.details import complete, file_proto
from khomas.catalog.errors import ChecksumMismatch, FileMissing
from khomas.catalog.files import BY_UID
from khomas.catalog.keys import VALUE, Keys
from khomas.catalog.names import check_distinct
from khomas.catalog.tables import ACTIVE, DELETING, NOT_DELETED, file, file_value, replica
from khomas.kit.database import AnyRow, Database, Rows, in_values, insert_rows, rows_table
from khomas.kit.errors import EtagMismatch
from khomas.kit.events import EventLog, NewEvent
from khomas.kit.idempotency import Once

WITHOUT_REPLICAS = ~exists(select(1).where(replica.c.file_id == file.c.id))


class Changes:
    """The rpcs that change metadata and replicas."""

    def __init__(self, database: Database, once: Once, log: EventLog, keys: Keys) -> None:
        self._database = database
        self._once = once
        self._log = log
        self._keys = keys

    async def metadata(self, request: pb.BatchUpdateMetadataRequest) -> pb.BatchUpdateMetadataResponse:
        """Set and remove metadata values."""
        check_distinct(change.name for change in request.updates)
        return await self._once(
            request, pb.BatchUpdateMetadataResponse, lambda connection: self._metadata(connection, request)
        )

    async def _metadata(
        self, connection: AsyncConnection, request: pb.BatchUpdateMetadataRequest
    ) -> pb.BatchUpdateMetadataResponse:
        rows = await locked(connection, [change.name for change in request.updates], ACTIVE)
        for change in request.updates:
            if change.etag and change.etag != str(rows[change.name].version):
                raise EtagMismatch(name=change.name)
        values = [(rows[change.name].id, change.set) for change in request.updates]
        new = await self._keys.rows(connection, values)
        known = await self._keys.of(connection, {key for change in request.updates for key in change.remove})
        gone = [
            (rows[change.name].id, known[key].id)
            for change in request.updates
            for key in {*change.remove, *change.set}
            if key in known
        ]
        await _delete_pairs(connection, gone)
        await insert_rows(connection, Rows(file_value, ("file_id", *VALUE), new))
        await self._touched(connection, [row.id for row in rows.values()])
        return pb.BatchUpdateMetadataResponse(changed=len(rows))

    async def replicas(self, request: pb.BatchUpdateReplicasRequest) -> pb.BatchUpdateReplicasResponse:
        """Add, change and remove replicas."""
        check_distinct(change.name for change in request.updates)
        return await self._once(
            request, pb.BatchUpdateReplicasResponse, lambda connection: self._replicas(connection, request)
        )

    async def _replicas(
        self, connection: AsyncConnection, request: pb.BatchUpdateReplicasRequest
    ) -> pb.BatchUpdateReplicasResponse:
        rows = await locked(connection, [change.name for change in request.updates], NOT_DELETED)
        now = datetime.now(UTC)
        new = []
        for change in request.updates:
            row = rows[change.name]
            _check_copy(change, row)
            new += replica_rows(File(name=row.name, replicas=change.set), row.id, now)
        gone = [(rows[change.name].id, element) for change in request.updates for element in change.remove]
        await _upsert_replicas(connection, new)
        await _delete_replicas(connection, gone)
        deleting = [row.id for row in rows.values() if row.state == File.STATE_DELETING]
        deleted = await self.finish_deletions(connection, deleting) if deleting else set()
        await self._touched(connection, [row.id for row in rows.values() if row.id not in deleted])
        return pb.BatchUpdateReplicasResponse(deleted_files=len(deleted))

    async def finish_deletions(self, connection: AsyncConnection, ids: Sequence[int]) -> set[int]:
        """Make DELETING files without replicas, past their undo window, tombstones."""
        now = datetime.now(UTC)
        finishing = (
            update(file)
            .values(state=File.STATE_DELETED, update_time=now, version=file.c.version + 1)
            .where(in_values(file.c.id, ids), DELETING)
            .where(file.c.purge_time <= now, WITHOUT_REPLICAS)
            .returning(*file.c)
        )
        rows = (await connection.execute(finishing)).all()
        await self._log.append(connection, [_event("deleted", file_proto(row)) for row in rows])
        return {row.id for row in rows}

    async def _touched(self, connection: AsyncConnection, ids: Sequence[int]) -> None:
        """Count the change and tell it with the whole file."""
        if not ids:
            return
        now = datetime.now(UTC)
        touching = (
            update(file)
            .values(update_time=now, version=file.c.version + 1)
            .where(in_values(file.c.id, ids))
            .returning(*file.c)
        )
        rows = (await connection.execute(touching)).all()
        whole = await complete(connection, rows, pb.FILE_VIEW_FULL)
        await self._log.append(connection, [_event("updated", one) for one in whole])


async def locked(
    connection: AsyncConnection, names: Sequence[str], in_state: ColumnElement[bool]
) -> Mapping[str, AnyRow]:
    """Return the files to change by the names given, LFN or "files/{uid}", in the order of the names."""
    uids = [name.removeprefix(BY_UID) for name in names if name.startswith(BY_UID)]
    lfns = [name for name in names if not name.startswith(BY_UID)]
    wanted = or_(in_values(file.c.name, lfns), in_values(file.c.uid, uids)) if uids else in_values(file.c.name, lfns)
    query = select(file).where(wanted, in_state).order_by(file.c.id).with_for_update()
    rows = (await connection.execute(query)).all()
    found = {row.name: row for row in rows} | {BY_UID + row.uid: row for row in rows}
    if missing := [name for name in names if name not in found]:
        raise FileMissing(name=missing[0])
    return {name: found[name] for name in names}


def _check_copy(change: pb.ReplicaUpdate, row: AnyRow) -> None:
    size_differs = bool(change.adler32 or change.size_bytes) and change.size_bytes != row.size_bytes
    sum_differs = bool(change.adler32) and bool(row.adler32) and change.adler32 != row.adler32
    if change.set and (size_differs or sum_differs):
        raise ChecksumMismatch(name=row.name, storage_element=change.set[0].storage_element)


def _event(verb: str, one: File) -> NewEvent:
    return NewEvent(f"catalog.file.{verb}", one.name, one.uid, one.origin, one)


async def _upsert_replicas(connection: AsyncConnection, rows: Sequence[tuple[Any, ...]]) -> None:
    if not rows:
        return
    types = {key: replica.c[key].type for key in REPLICA}
    source = rows_table(connection, types, rows)
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    # The WHERE keeps SQLite from reading ON CONFLICT as the condition of a join.
    statement = insert(replica).from_select([*types], select(*source.c).where(source.c.file_id.is_not(None)))
    new = statement.excluded
    await connection.execute(
        statement.on_conflict_do_update(
            index_elements=["file_id", "storage_element"],
            set_={"path": new.path, "state": new.state, "verify_time": new.verify_time},
        )
    )


async def _delete_replicas(connection: AsyncConnection, pairs: Sequence[tuple[int, str]]) -> None:
    if pairs:
        types = {"file_id": replica.c.file_id.type, "storage_element": replica.c.storage_element.type}
        gone = rows_table(connection, types, pairs)
        same = (replica.c.file_id == gone.c.file_id) & (replica.c.storage_element == gone.c.storage_element)
        await connection.execute(delete(replica).where(exists(select(1).select_from(gone).where(same))))


async def _delete_pairs(connection: AsyncConnection, pairs: Sequence[tuple[int, int]]) -> None:
    if pairs:
        types = {"file_id": file_value.c.file_id.type, "key_id": file_value.c.key_id.type}
        gone = rows_table(connection, types, pairs)
        same = (file_value.c.file_id == gone.c.file_id) & (file_value.c.key_id == gone.c.key_id)
        await connection.execute(delete(file_value).where(exists(select(1).select_from(gone).where(same))))
