"""Productions as they are shown: what was asked for, with how far it is."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, case, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.bookkeeping.v1.production_pb2 import Cell, Production, Progress, Stage, WorkItem
from khomas.bookkeeping.tables import cell, production, stage, work_item
from khomas.kit.database import AnyRow, in_values
from khomas.kit.events import NewEvent

_SUMS = (
    "requested_events",
    "produced_events",
    "in_flight_events",
    "lost_events",
    "jobs_total",
    "jobs_succeeded",
    "jobs_failed",
    "jobs_active",
    "input_files",
    "items_processed",
    "items_total",
    "jobs_to_go",
)


async def shown(connection: AsyncConnection, rows: Sequence[AnyRow]) -> list[Production]:
    """Return the productions of these rows, with three statements."""
    stages = select(stage).where(in_values(stage.c.production_id, [row.id for row in rows])).order_by(stage.c.position)
    stage_rows = (await connection.execute(stages)).all()
    ids = [row.id for row in stage_rows]
    cells = {row.stage_id: row for row in (await connection.execute(_cell_sums(ids))).all()}
    items = {row.stage_id: row for row in (await connection.execute(_item_sums(ids))).all()}
    found: dict[int, list[Stage]] = {}
    for row in stage_rows:
        found.setdefault(row.production_id, []).append(_stage(row, cells.get(row.id), items.get(row.id)))
    return [_production(row, found.get(row.id, [])) for row in rows]


async def changed(connection: AsyncConnection, rows: Sequence[AnyRow]) -> list[NewEvent]:
    """Return the events that tell of changed productions."""
    return [
        NewEvent("bookkeeping.production.changed", one.name, one.uid, "", one) for one in await shown(connection, rows)
    ]


def _sum(value: ColumnElement[Any]) -> ColumnElement[int]:
    return func.coalesce(func.sum(value), 0)


def _cell_sums(stage_ids: Sequence[int]) -> Any:
    columns = cell.c
    active = columns.jobs_total - columns.jobs_succeeded - columns.jobs_failed
    in_flight = active * columns.events_per_job
    missing = columns.requested_events - columns.produced_events - in_flight
    to_go = (missing + columns.events_per_job - 1) / columns.events_per_job
    needs = (columns.state == Cell.STATE_ACTIVE) & (missing > 0)
    return (
        select(
            columns.stage_id,
            _sum(columns.requested_events).label("requested_events"),
            _sum(columns.produced_events).label("produced_events"),
            _sum(in_flight).label("in_flight_events"),
            _sum(columns.lost_events).label("lost_events"),
            _sum(case((needs, func.floor(to_go)), else_=0)).label("jobs_to_go"),
        )
        .where(in_values(columns.stage_id, stage_ids))
        .group_by(columns.stage_id)
    )


def _item_sums(stage_ids: Sequence[int]) -> Any:
    columns = work_item.c
    waiting = columns.state.in_([WorkItem.STATE_GROUPED, WorkItem.STATE_READY])
    return (
        select(
            columns.stage_id,
            func.count().label("items_total"),
            _sum(case((columns.state == WorkItem.STATE_PROCESSED, 1), else_=0)).label("items_processed"),
            _sum(case((waiting, 1), else_=0)).label("jobs_to_go"),
        )
        .where(in_values(columns.stage_id, stage_ids))
        .group_by(columns.stage_id)
    )


def _stage(row: AnyRow, cells: AnyRow | None, items: AnyRow | None) -> Stage:
    made = Stage.FromString(row.wanted)
    progress = Progress(
        jobs_total=row.jobs_total,
        jobs_succeeded=row.jobs_succeeded,
        jobs_failed=row.jobs_failed,
        jobs_active=row.jobs_total - row.jobs_succeeded - row.jobs_failed,
        input_files=row.input_files,
        complete=row.complete,
    )
    for sums in (cells, items):
        for name, value in sums._asdict().items() if sums else ():
            if name != "stage_id":
                setattr(progress, name, int(value))
    made.progress.CopyFrom(progress)
    return made


def _production(row: AnyRow, stages: Sequence[Stage]) -> Production:
    made = Production(
        name=row.name,
        uid=row.uid,
        description=row.description,
        tags=row.tags,
        priority=row.priority,
        owner=row.owner,
        state=row.state,
        message=row.message,
        create_time=row.create_time,
        update_time=row.update_time,
        end_time=row.end_time,
        stages=stages,
        etag=str(row.version),
        progress=Progress(
            **{name: sum(getattr(one.progress, name) for one in stages) for name in _SUMS},
            complete=all(one.progress.complete for one in stages),
        ),
    )
    if row.state == Production.STATE_ACTIVE and (end := _estimated_end(made.progress, row.create_time)):
        made.progress.estimated_end_time.FromDatetime(end)
    return made


def _estimated_end(progress: Progress, begin: datetime) -> datetime | None:
    """Go on as fast as until now."""
    missing = progress.requested_events - progress.produced_events
    if missing <= 0 or not progress.produced_events:
        return None
    now = datetime.now(UTC)
    return now + (now - begin) * (missing / progress.produced_events)


async def locked_stages(connection: AsyncConnection, production_id: int) -> Sequence[AnyRow]:
    """Lock a production against other planners and return its stages in order."""
    await connection.execute(select(production.c.id).where(production.c.id == production_id).with_for_update())
    query = select(stage).where(stage.c.production_id == production_id).order_by(stage.c.position)
    return (await connection.execute(query.with_for_update())).all()


def complete_by_name(stages: Sequence[AnyRow]) -> Mapping[str, bool]:
    """Return which stages are complete."""
    return {row.name: row.complete for row in stages}
