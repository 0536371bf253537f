"""Records what the scheduler is to be asked for, with numbers that are never used again."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.bookkeeping.v1.production_pb2 import Cell, WorkItem
from khomas.bookkeeping.cells import tally
from khomas.bookkeeping.tables import allocator, cell, stage, submission, work_item
from khomas.bookkeeping.topup import jobs_needed
from khomas.kit.database import AnyRow, in_values, insert_many, rows_table
from khomas.kit.ids import new_uid

# Jobs of one array, and work items of one call.
_MAX_ARRAY = 10_000
_MAX_ITEMS = 500
_FIRST_SEED = 1


async def order_cells(connection: AsyncConnection, stage_id: int, free: int, priority: int) -> None:
    """Order the jobs that the cells need, as far as there is room for them."""
    columns = cell.c
    active = columns.jobs_total - columns.jobs_succeeded - columns.jobs_failed
    # The yield is never taken as less than a half, so what is on its way counts for at least that.
    short = 2 * (columns.requested_events - columns.produced_events) > active * columns.events_per_job
    query = select(cell).where(columns.stage_id == stage_id, columns.state == Cell.STATE_ACTIVE, short)
    wanted: list[tuple[AnyRow, int]] = []
    hopeless: list[int] = []
    for row in (await connection.execute(query.order_by(columns.position))).all():
        needed = min(jobs_needed(tally(row), row.events_per_job), row.max_jobs - row.jobs_total)
        if needed <= 0 and row.jobs_total >= row.max_jobs and tally(row).in_flight == 0:
            hopeless.append(row.id)
        count = min(needed, free, _MAX_ARRAY)
        if count > 0:
            wanted.append((row, count))
            free -= count
    await _give_up(connection, hopeless)
    if wanted:
        await _record(connection, stage_id, wanted, priority)


async def _give_up(connection: AsyncConnection, cell_ids: Sequence[int]) -> None:
    if cell_ids:
        await connection.execute(update(cell).values(state=Cell.STATE_FAILED).where(in_values(cell.c.id, cell_ids)))


async def _record(
    connection: AsyncConnection, stage_id: int, wanted: Sequence[tuple[AnyRow, int]], priority: int
) -> None:
    total = sum(count for _, count in wanted)
    seed = await _allocate(connection, "seed", total)
    rows = []
    for row, count in wanted:
        numbers = {"cell_id": row.id, "first_run_number": row.jobs_total + 1, "first_seed": seed}
        rows.append(_submission(stage_id, count, priority, numbers))
        seed += count
    await insert_many(connection, submission, rows)
    types = {"id": cell.c.id.type, "count": cell.c.jobs_total.type}
    new = rows_table(connection, types, [(row.id, count) for row, count in wanted])
    counting = update(cell).values(jobs_total=cell.c.jobs_total + new.c.count).where(cell.c.id == new.c.id)
    await connection.execute(counting)
    await _count_jobs(connection, stage_id, total)


async def _allocate(connection: AsyncConnection, name: str, count: int) -> int:
    """Take so many numbers and return the first."""
    await insert_many(connection, allocator, [{"name": name, "next": _FIRST_SEED}], skip_existing=True)
    taking = update(allocator).values(next=allocator.c.next + count).where(allocator.c.name == name)
    after: int = (await connection.execute(taking.returning(allocator.c.next))).scalar_one()
    return after - count


def _submission(stage_id: int, count: int, priority: int, numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "uid": new_uid(),
        "request_id": str(uuid4()),
        "stage_id": stage_id,
        "cell_id": None,
        "priority": priority,
        "job_count": count,
        "first_run_number": 0,
        "first_seed": 0,
        "job": "",
        "submitted": False,
        "create_time": datetime.now(UTC),
        **numbers,
    }


async def _count_jobs(connection: AsyncConnection, stage_id: int, count: int) -> None:
    counting = update(stage).values(jobs_total=stage.c.jobs_total + count).where(stage.c.id == stage_id)
    await connection.execute(counting)


async def order_items(connection: AsyncConnection, stage_id: int, free: int, priority: int) -> list[AnyRow]:
    """Order jobs for work items that are READY, as far as there is room, and return their rows."""
    query = (
        select(work_item.c.id)
        .where(work_item.c.stage_id == stage_id, work_item.c.state == WorkItem.STATE_READY)
        .order_by(work_item.c.id)
        .limit(max(0, free))
    )
    ids = (await connection.execute(query)).scalars().all()
    assigned: list[AnyRow] = []
    for start in range(0, len(ids), _MAX_ITEMS):
        assigned += await _assign(connection, stage_id, ids[start : start + _MAX_ITEMS], priority)
    if ids:
        await _count_jobs(connection, stage_id, len(ids))
    return assigned


async def _assign(connection: AsyncConnection, stage_id: int, ids: Sequence[int], priority: int) -> Sequence[AnyRow]:
    values = _submission(stage_id, len(ids), priority, {})
    made = await connection.execute(insert(submission).values(values).returning(submission.c.id))
    assigning = (
        update(work_item)
        .values(
            state=WorkItem.STATE_ASSIGNED,
            submission_id=made.scalar_one(),
            tries=work_item.c.tries + 1,
            job="",
            update_time=datetime.now(UTC),
        )
        .where(in_values(work_item.c.id, ids))
        .returning(*work_item.c)
    )
    return (await connection.execute(assigning)).all()
