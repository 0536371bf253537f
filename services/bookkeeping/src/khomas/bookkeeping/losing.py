"""Files that are deleted before a job gets them, and those whose deletion is undone."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Select, Update, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.bookkeeping.v1.production_pb2 import WorkItem
from khomas.bookkeeping.items import new_row
from khomas.bookkeeping.tables import arrival, item_file, stage, work_item
from khomas.kit.database import AnyRow, in_values, insert_many, insert_new, rows_table
from khomas.kit.ids import new_uids

LOST = "Deleted before a job got it; taken in again when the deletion is undone."
_BACK = "Its files are there again."
_TAKES_FILES = (WorkItem.STATE_GROUPED, WorkItem.STATE_READY)


@dataclass(frozen=True, slots=True)
class Lost:
    """A file of a stage that no job got."""

    stage_id: int
    uid: str
    name: str
    group: str = ""
    # Without one it was only told of.
    item_id: int | None = None


async def lose(connection: AsyncConnection, file_uids: Sequence[str]) -> list[AnyRow]:
    """Take files out of the work items that no job has yet, and return the items that changed.

    The rest of an item goes on. What it lost becomes an item that is MISSING, so that it is seen, and found again.
    """
    if not file_uids:
        return []
    now = datetime.now(UTC)
    waiting = await _not_looked_at(connection, file_uids)
    found = (await connection.execute(_files_in(_TAKES_FILES, file_uids))).all()
    whole, parts = _whole_and_parts(found)
    ending = (
        update(work_item)
        .values(state=WorkItem.STATE_MISSING, message=LOST, update_time=now)
        .where(in_values(work_item.c.id, whole))
        .returning(*work_item.c)
    )
    ended = (await connection.execute(ending)).all() if whole else []
    made = await _missing(connection, [*parts, *([one] for one in waiting)], now)
    kept = await _counted_less(connection, Counter(one.item_id for part in parts for one in part), now)
    return [*ended, *made, *kept]


async def _not_looked_at(connection: AsyncConnection, file_uids: Sequence[str]) -> list[Lost]:
    """Forget the files of which stages were only told, and return those that are known to fit.

    Of the others the catalogue tells again when they come back.
    """
    forgetting = (
        delete(arrival)
        .where(in_values(arrival.c.file_uid, file_uids))
        .returning(arrival.c.stage_id, arrival.c.file_uid, arrival.c.file, arrival.c.selected)
    )
    told = [row for row in (await connection.execute(forgetting)).all() if row.selected]
    if not told:
        return []
    query = select(item_file.c.stage_id, item_file.c.file_uid).where(in_values(item_file.c.file_uid, file_uids))
    known = {tuple(row) for row in await connection.execute(query)}
    return [Lost(row.stage_id, row.file_uid, row.file) for row in told if (row.stage_id, row.file_uid) not in known]


async def bring_back(connection: AsyncConnection, stage_ids: Sequence[int], file_uids: Sequence[str]) -> list[AnyRow]:
    """Let these stages take in again what they had lost, and return the items that changed."""
    if not file_uids:
        return []
    query = _files_in((WorkItem.STATE_MISSING,), file_uids).where(in_values(item_file.c.stage_id, stage_ids))
    found = (await connection.execute(query)).all()
    if not found:
        return []
    now = datetime.now(UTC)
    # It was in the stage, so it fits.
    rows = [
        {"stage_id": row.stage_id, "file": row.file, "file_uid": row.file_uid, "selected": True, "create_time": now}
        for row in found
    ]
    await insert_many(connection, arrival, rows, skip_existing=True)
    for stage_id, some in _by(found, "stage_id").items():
        uids = [row.file_uid for row in some]
        gone = delete(item_file).where(item_file.c.stage_id == stage_id, in_values(item_file.c.file_uid, uids))
        await connection.execute(gone)
        # They are counted again when they are taken in.
        await connection.execute(_counting_inputs(stage_id, -len(uids)))
    changed = await _counted_less(connection, Counter(row.item_id for row in found), now)
    empty = [row.id for row in changed if not row.file_count]
    skipping = (
        update(work_item)
        .values(state=WorkItem.STATE_SKIPPED, message=_BACK)
        .where(in_values(work_item.c.id, empty))
        .returning(*work_item.c)
    )
    skipped = (await connection.execute(skipping)).all() if empty else []
    return [*(row for row in changed if row.file_count), *skipped]


def _files_in(states: Iterable[int], file_uids: Sequence[str]) -> Select[Any]:
    """Return the query for files with their items, which are locked in the order in which all lock them."""
    return (
        select(
            item_file.c.stage_id,
            item_file.c.file_uid,
            item_file.c.file,
            item_file.c.item_id,
            work_item.c.group_value,
            work_item.c.file_count,
        )
        .join(work_item, work_item.c.id == item_file.c.item_id)
        .where(in_values(item_file.c.file_uid, file_uids), work_item.c.state.in_(states))
        .order_by(item_file.c.item_id, item_file.c.file)
        .with_for_update(of=work_item)
    )


def _whole_and_parts(found: Iterable[AnyRow]) -> tuple[list[int], list[list[Lost]]]:
    """Return the items that lose all their files, and of the others the files that they lose."""
    whole, parts = [], []
    for item_id, rows in _by(found, "item_id").items():
        if len(rows) < rows[0].file_count:
            parts.append([Lost(row.stage_id, row.file_uid, row.file, row.group_value, item_id) for row in rows])
        else:
            whole.append(item_id)
    return whole, parts


def _by(rows: Iterable[AnyRow], column: str) -> dict[int, list[AnyRow]]:
    grouped: dict[int, list[AnyRow]] = {}
    for row in rows:
        grouped.setdefault(getattr(row, column), []).append(row)
    return grouped


async def _missing(connection: AsyncConnection, parts: Sequence[Sequence[Lost]], now: datetime) -> Sequence[AnyRow]:
    """Put files into items of their own, which are MISSING."""
    if not parts:
        return []
    uids = new_uids(len(parts))
    rows = [
        new_row(uid, part[0].stage_id, part[0].group, len(part), WorkItem.STATE_MISSING, LOST, now)
        for uid, part in zip(uids, parts, strict=True)
    ]
    made = await insert_new(connection, work_item, rows, *work_item.c)
    ids = {row.uid: row.id for row in made}
    placed = [(one, ids[uid]) for uid, part in zip(uids, parts, strict=True) for one in part]
    await _take_in(connection, [(one, item_id) for one, item_id in placed if one.item_id is None])
    await _move(connection, [(one, item_id) for one, item_id in placed if one.item_id is not None])
    return made


async def _take_in(connection: AsyncConnection, placed: Sequence[tuple[Lost, int]]) -> None:
    rows = [
        {"stage_id": one.stage_id, "file_uid": one.uid, "file": one.name, "item_id": item_id} for one, item_id in placed
    ]
    await insert_many(connection, item_file, rows)
    for stage_id, count in Counter(one.stage_id for one, _ in placed).items():
        await connection.execute(_counting_inputs(stage_id, count))


async def _move(connection: AsyncConnection, placed: Sequence[tuple[Lost, int]]) -> None:
    if not placed:
        return
    types = {"stage": item_file.c.stage_id.type, "file": item_file.c.file_uid.type, "item": item_file.c.item_id.type}
    source = rows_table(connection, types, [(one.stage_id, one.uid, item_id) for one, item_id in placed])
    moving = (
        update(item_file)
        .values(item_id=source.c.item)
        .where(item_file.c.stage_id == source.c.stage, item_file.c.file_uid == source.c.file)
    )
    await connection.execute(moving)


def _counting_inputs(stage_id: int, more: int) -> Update:
    return update(stage).values(input_files=stage.c.input_files + more).where(stage.c.id == stage_id)


async def _counted_less(connection: AsyncConnection, lost: Mapping[int | None, int], now: datetime) -> list[AnyRow]:
    """Subtract from the numbers of files, by id of the item."""
    if not lost:
        return []
    types = {"id": work_item.c.id.type, "lost": work_item.c.file_count.type}
    source = rows_table(connection, types, list(lost.items()))
    counting = (
        update(work_item)
        .values(file_count=work_item.c.file_count - source.c.lost, update_time=now)
        .where(work_item.c.id == source.c.id)
        .returning(*work_item.c)
    )
    return list((await connection.execute(counting)).all())
