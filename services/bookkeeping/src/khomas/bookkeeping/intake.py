"""Makes work items of the files that have arrived."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.bookkeeping.v1.production_pb2 import Stage, WorkItem
from khomas.api.catalog.v1 import catalog_service_pb2 as pb
from khomas.api.catalog.v1.catalog_service_pb2_grpc import CatalogServiceStub
from khomas.api.catalog.v1.file_pb2 import File
from khomas.bookkeeping.arrivals import data_stages, forget
from khomas.bookkeeping.filters import room
from khomas.bookkeeping.grouping import Arrived, Group, gather, group_value
from khomas.bookkeeping.items import items_changed, new_row
from khomas.bookkeeping.pausing import Pausing
from khomas.bookkeeping.stages import ALL, max_files
from khomas.bookkeeping.tables import arrival, item_file, stage, work_item
from khomas.kit.database import AnyRow, Database, in_values, insert_many, insert_new, rows_table
from khomas.kit.events import EventLog
from khomas.kit.ids import new_uids

_BATCH = 2000


class Intake:
    """Looks at arrived files once and puts them into groups."""

    def __init__(self, database: Database, log: EventLog, catalog: CatalogServiceStub, pausing: Pausing) -> None:
        self._database = database
        self._log = log
        self._catalog = catalog
        self._pausing = pausing

    async def work(self) -> None:
        """Take in everything that is there."""
        async with self._database.read() as connection:
            stages = await data_stages(connection)
        await self._pausing.each(stages, self._take_all)

    async def _take_all(self, row: AnyRow, wanted: Stage) -> None:
        while await self._take_in(row, wanted):
            pass

    async def _take_in(self, row: AnyRow, wanted: Stage) -> bool:
        query = select(arrival).where(arrival.c.stage_id == row.id).order_by(arrival.c.file).limit(_BATCH)
        async with self._database.read() as connection:
            notes = (await connection.execute(query)).all()
        if not notes:
            return False
        files = await self._selected(wanted, notes)
        async with self._database.write() as connection:
            await forget(connection, row.id, [note.file for note in notes])
            await self._group(connection, row.id, wanted, files)
        return len(notes) == _BATCH

    async def _selected(self, wanted: Stage, notes: Sequence[AnyRow]) -> list[Arrived]:
        """Ask the catalogue for what is not known yet, in bulk."""
        source = wanted.data
        by_key = source.group_by not in ("", ALL)
        filtered = {note.file for note in notes if source.filter and not note.selected}
        if not by_key and not filtered and all(note.file_uid for note in notes):
            return [Arrived(note.file, note.file_uid, source.group_by) for note in notes]
        view = pb.FILE_VIEW_FULL if by_key else pb.FILE_VIEW_BASIC
        request = pb.BatchGetFilesRequest(names=[note.file for note in notes], view=view)
        found = [result.file for result in (await self._catalog.BatchGetFiles(request)).results if result.file.name]
        active = [file for file in found if file.state == File.STATE_ACTIVE]
        if filtered:
            fitting = await self._fitting(source.filter, [file.uid for file in active if file.name in filtered])
            active = [file for file in active if file.name not in filtered or file.uid in fitting]
        return [Arrived(file.name, file.uid, group_value(source, file)) for file in active]

    async def _fitting(self, filter_text: str, uids: Sequence[str]) -> set[str]:
        """Return which files match the filter."""
        fitting: set[str] = set()
        for some in _chunks(uids, max(1, room(filter_text))):
            either = " OR ".join(f'uid = "{uid}"' for uid in some)
            request = pb.ListFilesRequest(
                filter=f"({filter_text}) AND ({either})", page_size=len(some), view=pb.FILE_VIEW_BASIC
            )
            fitting.update(file.uid for file in (await self._catalog.ListFiles(request)).files)
        return fitting

    async def _group(self, connection: AsyncConnection, stage_id: int, wanted: Stage, files: Sequence[Arrived]) -> None:
        await connection.execute(select(stage.c.id).where(stage.c.id == stage_id).with_for_update())
        fresh = await _unknown(connection, stage_id, files)
        if not fresh:
            return
        growing = await _growing(connection, stage_id, {file.group for file in fresh})
        groups = gather(fresh, growing, alone=not wanted.data.group_by, max_files=max_files(wanted))
        rows = await _stored(connection, stage_id, groups)
        ids = {row.uid: row.id for row in rows}
        members = [
            {"stage_id": stage_id, "file_uid": file.uid, "file": file.name, "item_id": ids[group.uid]}
            for group in groups
            for file in group.added
        ]
        await insert_many(connection, item_file, members)
        counting = update(stage).values(input_files=stage.c.input_files + len(fresh)).where(stage.c.id == stage_id)
        await connection.execute(counting)
        await self._log.append(connection, await items_changed(connection, rows))


async def _unknown(connection: AsyncConnection, stage_id: int, files: Sequence[Arrived]) -> list[Arrived]:
    """Return the files that are in no work item of the stage yet."""
    query = select(item_file.c.file_uid).where(
        item_file.c.stage_id == stage_id, in_values(item_file.c.file_uid, [file.uid for file in files])
    )
    known = set((await connection.execute(query)).scalars())
    return [file for file in files if file.uid not in known]


async def _growing(connection: AsyncConnection, stage_id: int, values: set[str]) -> list[Group]:
    query = (
        select(work_item.c.group_value, work_item.c.uid, work_item.c.file_count)
        .where(
            work_item.c.stage_id == stage_id,
            work_item.c.state == WorkItem.STATE_GROUPED,
            in_values(work_item.c.group_value, values),
        )
        .order_by(work_item.c.id)
    )
    return [Group(row.group_value, row.uid, row.file_count) for row in (await connection.execute(query)).all()]


async def _stored(connection: AsyncConnection, stage_id: int, groups: Sequence[Group]) -> list[AnyRow]:
    """Store new groups and the growth of others, and return their rows."""
    now = datetime.now(UTC)
    new = [group for group in groups if not group.uid]
    for group, uid in zip(new, new_uids(len(new)), strict=True):
        group.uid = uid
    rows = [
        new_row(group.uid, stage_id, group.value, group.file_count, WorkItem.STATE_GROUPED, "", now) for group in new
    ]
    made = await insert_new(connection, work_item, rows, *work_item.c)
    grown = {group.uid: group.file_count for group in groups if group.stored_files}
    types = {"uid": work_item.c.uid.type, "files": work_item.c.file_count.type}
    source = rows_table(connection, types, list(grown.items()))
    growing = (
        update(work_item)
        .values(file_count=source.c.files, update_time=now, growth_time=now)
        .where(work_item.c.uid == source.c.uid)
        .returning(*work_item.c)
    )
    return [*made, *((await connection.execute(growing)).all() if grown else ())]


def _chunks(values: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (values[start : start + size] for start in range(0, len(values), size))
