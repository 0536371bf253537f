"""Cells: their rows and how they are shown."""

from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf.struct_pb2 import Struct
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.bookkeeping.v1 import bookkeeping_service_pb2 as pb
from khomas.api.bookkeeping.v1.production_pb2 import Cell, GridSource, Progress, Stage
from khomas.bookkeeping.errors import StageMissing
from khomas.bookkeeping.planning import PlannedCell
from khomas.bookkeeping.tables import cell, production, stage
from khomas.bookkeeping.topup import Tally, jobs_needed
from khomas.kit.database import AnyRow, Database
from khomas.kit.paging import Ordering, list_page

_DEFAULT_PAGE = 1000
_MAX_PAGE = 10_000
# How often the planned number of jobs is tried by default.
_MAX_JOBS_FACTOR = 10
_ORDERING = Ordering({"index": cell.c.position}, cell.c.id, "index")


class Cells:
    """Lists the cells of a stage."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(self, request: pb.ListCellsRequest) -> pb.ListCellsResponse:
        """List them in grid order."""
        async with self._database.read() as connection:
            row = await _grid_stage(connection, request.production, request.stage)
            query = select(cell).where(cell.c.stage_id == row.id)
            page = await list_page(
                connection, query, request, _ORDERING, default_size=_DEFAULT_PAGE, max_size=_MAX_PAGE
            )
        cells = [stored_cell(request.production, row.name, one) for one in page.rows]
        return pb.ListCellsResponse(cells=cells, next_page_token=page.next_page_token)


async def _grid_stage(connection: AsyncConnection, name: str, wanted: str) -> AnyRow:
    """Return the stage of this name, or the only one that has a grid."""
    query = select(stage).join(production).where(production.c.name == name).order_by(stage.c.position)
    rows = (await connection.execute(query)).all()
    grids = [row for row in rows if Stage.FromString(row.wanted).HasField("grid")]
    matching = [row for row in grids if wanted in ("", row.name)]
    if len(matching) != 1:
        names = ", ".join(row.name for row in grids) or "none"
        message = f"{name} has no single grid stage '{wanted}'; its grid stages: {names}."
        raise StageMissing(message, production=name, stage=wanted)
    return matching[0]


def cell_rows(stage_id: int, source: GridSource, planned: Iterable[PlannedCell]) -> Iterator[dict[str, Any]]:
    """Return the rows of new cells."""
    for one in planned:
        yield {
            "stage_id": stage_id,
            "position": one.index,
            "parameters": list(one.parameters.items()),
            "requested_events": one.requested_events,
            "events_per_job": one.events_per_job,
            "max_jobs": most_jobs(source, one.requested_events, one.events_per_job),
            "state": Cell.STATE_ACTIVE,
            "produced_events": 0,
            "lost_events": 0,
            "jobs_total": 0,
            "jobs_succeeded": 0,
            "jobs_failed": 0,
        }


def most_jobs(source: GridSource, requested: int, events_per_job: int) -> int:
    """Return after how many jobs a cell is given up."""
    return source.max_jobs_per_cell or _MAX_JOBS_FACTOR * -(-requested // events_per_job)


def tally(row: AnyRow) -> Tally:
    """Return what the top-up rule asks for."""
    active = row.jobs_total - row.jobs_succeeded - row.jobs_failed
    return Tally(
        row.requested_events,
        row.produced_events,
        active * row.events_per_job,
        row.jobs_succeeded,
        row.jobs_failed,
    )


def stored_cell(name: str, stage_name: str, row: AnyRow) -> Cell:
    """Show a cell with its progress."""
    now = tally(row)
    active = row.state == Cell.STATE_ACTIVE
    parameters = Struct()
    parameters.update(dict(row.parameters))
    return Cell(
        name=f"{name}/stages/{stage_name}/cells/{row.position}",
        parameters=parameters,
        columns=[key for key, _ in row.parameters],
        requested_events=row.requested_events,
        events_per_job=row.events_per_job,
        state=row.state,
        next_run_number=row.jobs_total + 1,
        progress=Progress(
            requested_events=row.requested_events,
            produced_events=row.produced_events,
            in_flight_events=now.in_flight,
            lost_events=row.lost_events,
            jobs_total=row.jobs_total,
            jobs_succeeded=row.jobs_succeeded,
            jobs_failed=row.jobs_failed,
            jobs_active=row.jobs_total - row.jobs_succeeded - row.jobs_failed,
            complete=row.state == Cell.STATE_DONE,
            jobs_to_go=jobs_needed(now, row.events_per_job) if active else 0,
        ),
    )


def cell_message(name: str, stage_name: str, planned: PlannedCell) -> Cell:
    """Show a cell that is only planned."""
    parameters = Struct()
    parameters.update(planned.parameters)
    return Cell(
        name=f"{name}/stages/{stage_name}/cells/{planned.index}",
        parameters=parameters,
        columns=list(planned.parameters),
        requested_events=planned.requested_events,
        events_per_job=planned.events_per_job,
        state=Cell.STATE_ACTIVE,
        next_run_number=1,
        progress=Progress(requested_events=planned.requested_events, jobs_to_go=planned.jobs),
    )
