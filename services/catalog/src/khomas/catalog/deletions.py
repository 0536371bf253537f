"""Deletion as an intent that can be taken back."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from sqlalchemy import ColumnElement, Update, func, literal, select, union_all, update
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.catalog.v1 import catalog_service_pb2 as pb
from khomas.api.catalog.v1.dataset_pb2 import Dataset
from khomas.api.catalog.v1.file_pb2 import File
from khomas.catalog.changes import WITHOUT_REPLICAS, Changes, locked
from khomas.catalog.details import complete
from khomas.catalog.errors import DeletionStarted, FileInClosedDataset, FileInUse
from khomas.catalog.files import BY_UID
from khomas.catalog.membership import moves
from khomas.catalog.names import check_distinct
from khomas.catalog.tables import ACTIVE, DELETING, dataset, dataset_file, file, parent
from khomas.kit.boundary.call import current_principal
from khomas.kit.database import AnyRow, Database, Rows, in_values
from khomas.kit.errors import FieldInvalid
from khomas.kit.events import EventLog, NewEvent
from khomas.kit.idempotency import Once

_PURGE_BATCH = 1000


class _Membership(NamedTuple):
    """A file of a dataset."""

    file_id: int
    name: str
    uid: str
    origin: str


class Deletions:
    """The rpcs that delete and undelete, and the end of the undo window."""

    def __init__(self, database: Database, once: Once, log: EventLog, changes: Changes, undo_window: timedelta) -> None:
        self._database = database
        self._once = once
        self._log = log
        self._changes = changes
        self._undo_window = undo_window

    async def delete(self, request: pb.BatchDeleteFilesRequest) -> pb.BatchDeleteFilesResponse:
        """Mark files as wanted gone."""
        check_distinct(request.names)
        if request.HasField("undo_window") and request.undo_window.ToTimedelta() < timedelta(0):
            raise FieldInvalid.of("undo_window", "must not be negative")
        return await self._once(
            request, pb.BatchDeleteFilesResponse, lambda connection: self._delete(connection, request)
        )

    async def _delete(
        self, connection: AsyncConnection, request: pb.BatchDeleteFilesRequest
    ) -> pb.BatchDeleteFilesResponse:
        rows = await locked(connection, request.names, ACTIVE)
        ids = [row.id for row in rows.values()]
        await _refuse_used(connection, ids, request.force)
        now = datetime.now(UTC)
        window = request.undo_window.ToTimedelta() if request.HasField("undo_window") else self._undo_window
        deleting = (
            update(file)
            .values(
                state=File.STATE_DELETING,
                delete_requester=current_principal().subject,
                delete_reason=request.reason,
                delete_time=now,
                purge_time=now + window,
                update_time=now,
                version=file.c.version + 1,
            )
            .where(in_values(file.c.id, ids))
            .returning(*file.c)
        )
        changed = (await connection.execute(deleting)).all()
        moves = _moves(rows, await _leave_datasets(connection, ids, now), away=True)
        files = await self._tell(connection, changed, "deleting", request.names, moves)
        return pb.BatchDeleteFilesResponse(files=files)

    async def undelete(self, request: pb.BatchUndeleteFilesRequest) -> pb.BatchUndeleteFilesResponse:
        """Take deletions back."""
        check_distinct(request.names)
        return await self._once(
            request, pb.BatchUndeleteFilesResponse, lambda connection: self._undelete(connection, request)
        )

    async def _undelete(
        self, connection: AsyncConnection, request: pb.BatchUndeleteFilesRequest
    ) -> pb.BatchUndeleteFilesResponse:
        rows = await locked(connection, request.names, DELETING)
        now = datetime.now(UTC)
        for name, row in rows.items():
            if row.purge_time <= now:
                raise DeletionStarted(name=name, purge_time=row.purge_time)
        back = await _rejoin_datasets(connection, self._database, list(rows.values()), now)
        nothing = {"delete_requester": None, "delete_reason": None, "delete_time": None, "purge_time": None}
        restoring = (
            update(file)
            .values(state=File.STATE_ACTIVE, update_time=now, version=file.c.version + 1, **nothing)
            .where(in_values(file.c.id, [row.id for row in rows.values()]))
            .returning(*file.c)
        )
        changed = (await connection.execute(restoring)).all()
        moves = _moves(rows, back, away=False)
        files = await self._tell(connection, changed, "undeleted", request.names, moves)
        return pb.BatchUndeleteFilesResponse(files=files)

    async def purge(self) -> None:
        """Make files without replicas tombstones when their undo window has ended."""
        due = (
            select(file.c.id)
            # Files that wait for the storage would fill the batch and keep the others out of it.
            .where(DELETING, file.c.purge_time <= datetime.now(UTC), WITHOUT_REPLICAS)
            .order_by(file.c.purge_time)
            .limit(_PURGE_BATCH)
        )
        async with self._database.read() as connection:
            ids = list((await connection.execute(due)).scalars())
        if ids:
            async with self._database.write() as connection:
                await self._changes.finish_deletions(connection, ids)

    async def _tell(
        self,
        connection: AsyncConnection,
        rows: Sequence[AnyRow],
        verb: str,
        names: Sequence[str],
        moves: Sequence[NewEvent],
    ) -> list[File]:
        files = {one.name: one for one in await complete(connection, rows, pb.FILE_VIEW_FULL)}
        events = [NewEvent(f"catalog.file.{verb}", one.name, one.uid, one.origin, one) for one in files.values()]
        await self._log.append(connection, [*events, *moves])
        by_name = files | {BY_UID + one.uid: one for one in files.values()}
        return [by_name[name] for name in names]


async def _refuse_used(connection: AsyncConnection, ids: Sequence[int], force: bool) -> None:
    """Raise when a closed dataset has one of these, or without force other files were made from it."""
    wanted, child = file.alias(), file.alias()
    made = (
        select(literal(False).label("closed"), wanted.c.name, child.c.name.label("child"))
        .select_from(parent)
        .join(wanted, wanted.c.id == parent.c.parent_id)
        .join(child, child.c.id == parent.c.child_id)
        .where(in_values(parent.c.parent_id, ids), child.c.state == File.STATE_ACTIVE, ~in_values(child.c.id, ids))
    )
    held = (
        select(literal(True).label("closed"), wanted.c.name, dataset.c.name.label("child"))
        .select_from(dataset_file)
        .join(wanted, wanted.c.id == dataset_file.c.file_id)
        .join(dataset, dataset.c.id == dataset_file.c.dataset_id)
        .where(
            in_values(dataset_file.c.file_id, ids),
            dataset_file.c.remove_time.is_(None),
            dataset.c.state == Dataset.STATE_CLOSED,
        )
    )
    row = (await connection.execute((held if force else union_all(held, made)).limit(1))).first()
    if row is not None and row.closed:
        raise FileInClosedDataset(name=row.name, dataset=row.child)
    if row is not None:
        raise FileInUse(name=row.name, child=row.child)


def _moves(files: Mapping[str, AnyRow], memberships: Sequence[_Membership], *, away: bool) -> list[NewEvent]:
    """Return an event for each dataset."""
    names = {row.id: row.name for row in files.values()}
    by_dataset: dict[tuple[str, str, str], list[str]] = {}
    for row in memberships:
        by_dataset.setdefault(row[1:], []).append(names[row.file_id])
    return [
        event
        for owner, moved in sorted(by_dataset.items())
        for event in moves(*owner, [] if away else sorted(moved), sorted(moved) if away else [])
    ]


async def _leave_datasets(connection: AsyncConnection, ids: Sequence[int], now: datetime) -> list[_Membership]:
    """End the memberships at the moment of the deletion and return them; the undo knows them by it."""
    lasting = dataset_file.c.remove_time.is_(None)
    counting = _recounting(ids, -1, lasting).returning(dataset.c.id, dataset.c.name, dataset.c.uid, dataset.c.origin)
    leaving = update(dataset_file).values(remove_time=now).where(in_values(dataset_file.c.file_id, ids), lasting)
    if connection.dialect.name == "postgresql":
        # One statement; it reads the first part so that datasets are locked before memberships, as everywhere.
        owner = counting.cte("counted")
        leaving = leaving.where(dataset_file.c.dataset_id == owner.c.id)
        found = leaving.returning(dataset_file.c.file_id, owner.c.name, owner.c.uid, owner.c.origin)
        return [_Membership(*row) for row in await connection.execute(found)]
    owners = {row.id: row for row in await connection.execute(counting)}
    left = await connection.execute(leaving.returning(dataset_file.c.file_id, dataset_file.c.dataset_id))
    return [_Membership(row.file_id, *owners[row.dataset_id][1:]) for row in left]


async def _rejoin_datasets(
    connection: AsyncConnection, database: Database, rows: Sequence[AnyRow], now: datetime
) -> list[_Membership]:
    """Make files members again of what they left with their deletion, and return the memberships."""
    ids = [row.id for row in rows]
    ended = dataset_file.c.remove_time == file.c.delete_time
    # One that was closed meanwhile stays without them.
    still_open = dataset.c.state == Dataset.STATE_OPEN
    query = (
        select(dataset_file.c.dataset_id, dataset_file.c.file_id, dataset.c.name, dataset.c.uid, dataset.c.origin)
        .join(file, file.c.id == dataset_file.c.file_id)
        .join(dataset, dataset.c.id == dataset_file.c.dataset_id)
        .where(in_values(dataset_file.c.file_id, ids), ended, still_open)
    )
    back = (await connection.execute(query)).all()
    if back:
        await connection.execute(_recounting(ids, +1, ended).where(still_open))
        columns, pairs = ("dataset_id", "file_id"), [(row.dataset_id, row.file_id) for row in back]
        database.insert_at_end(connection, Rows(dataset_file, columns, pairs, {"add_time": now}))
    return [_Membership(*row[1:]) for row in back]


def _recounting(ids: Sequence[int], sign: int, which: ColumnElement[bool]) -> Update:
    """Return what corrects count and size of the datasets that the files are in."""
    moving = (
        select(
            dataset_file.c.dataset_id,
            func.count().label("files"),
            func.sum(file.c.size_bytes).label("bytes"),
        )
        .join(file, file.c.id == dataset_file.c.file_id)
        .where(in_values(dataset_file.c.file_id, ids), which)
        .group_by(dataset_file.c.dataset_id)
        .subquery()
    )
    return (
        update(dataset)
        .values(
            file_count=dataset.c.file_count + sign * moving.c.files,
            size_bytes=dataset.c.size_bytes + sign * moving.c.bytes,
            update_time=datetime.now(UTC),
            version=dataset.c.version + 1,
        )
        .where(dataset.c.id == moving.c.dataset_id)
    )
