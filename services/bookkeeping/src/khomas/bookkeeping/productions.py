"""Productions: make, read, list."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.bookkeeping.v1 import bookkeeping_service_pb2 as pb
from khomas.api.bookkeeping.v1.production_pb2 import Cell, Production, Progress, Stage
from khomas.bookkeeping.cells import cell_message, cell_rows
from khomas.bookkeeping.checking import Checking
from khomas.bookkeeping.errors import ExpressionInvalid, ProductionExists, ProductionMissing
from khomas.bookkeeping.planning import Plan, PlannedCell, plan
from khomas.bookkeeping.progress import changed, shown
from khomas.bookkeeping.records import Listing
from khomas.bookkeeping.rights import check_rights
from khomas.bookkeeping.stages import check_stages, takes_outputs
from khomas.bookkeeping.tables import cell, production, stage
from khomas.bookkeeping.tags import Tags
from khomas.kit.boundary.call import current_principal
from khomas.kit.database import AnyRow, Database, insert_many, insert_new
from khomas.kit.errors import FieldInvalid
from khomas.kit.events import EventLog
from khomas.kit.expressions import ExpressionError
from khomas.kit.filtering import Fields, fields, where
from khomas.kit.idempotency import Once
from khomas.kit.ids import new_uid
from khomas.kit.paging import Ordering, list_page

MAX_CELLS = 100_000
_CELL_BATCH = 5000
_ORDERING = Ordering({"create_time": production.c.create_time}, production.c.id, "create_time desc")
_FIELDS: Fields = {
    "name": fields.text(production.c.name),
    "state": fields.enum(production.c.state, Production.State),
    "owner": fields.text(production.c.owner),
    "create_time": fields.time(production.c.create_time),
    "tags": Tags(production.c.tags),
}


class Productions:
    """The rpcs that make and read productions."""

    def __init__(self, database: Database, once: Once, log: EventLog, checking: Checking) -> None:
        self._database = database
        self._once = once
        self._log = log
        self._checking = checking

    async def create(self, request: pb.CreateProductionRequest) -> pb.CreateProductionResponse:
        """Make one and start it, or only plan it."""
        wanted = request.production
        check_rights(current_principal(), wanted.stages)
        check_stages(wanted.stages)
        plans = {one.name: _plan(one) for one in wanted.stages if one.HasField("grid")}
        await self._checking.check(wanted, {name: next(iter(cells)) for name, cells in plans.items()})
        if request.validate_only:
            return _planned(wanted, plans)
        return await self._once(
            request, pb.CreateProductionResponse, lambda connection: self._create(connection, wanted, plans)
        )

    async def _create(
        self, connection: AsyncConnection, wanted: Production, plans: dict[str, list[PlannedCell]]
    ) -> pb.CreateProductionResponse:
        made = await insert_new(connection, production, [_row(wanted)], *production.c)
        if not made:
            raise ProductionExists(name=wanted.name)
        for position, one in enumerate(wanted.stages):
            inserting = insert(stage).values(_stage_row(made[0].id, position, one)).returning(stage.c.id)
            stage_id = (await connection.execute(inserting)).scalar_one()
            rows = iter(cell_rows(stage_id, one.grid, plans.get(one.name, ())))
            while batch := list(islice(rows, _CELL_BATCH)):
                await insert_many(connection, cell, batch)
        await self._log.append(connection, await changed(connection, made))
        return pb.CreateProductionResponse(production=(await shown(connection, made))[0])

    async def get(self, name: str) -> Production:
        """Read one."""
        async with self._database.read() as connection:
            return (await shown(connection, [await found(connection, name)]))[0]

    async def page(self, request: pb.ListProductionsRequest) -> pb.ListProductionsResponse:
        """List them."""
        query = select(production).where(where(request.filter, _FIELDS))
        async with self._database.read() as connection:
            page = await list_page(connection, query, request, _ORDERING)
            productions = await shown(connection, page.rows)
        return pb.ListProductionsResponse(productions=productions, next_page_token=page.next_page_token)


async def found(connection: AsyncConnection, name: str, *, lock: bool = False) -> AnyRow:
    """Return the row of a production."""
    query = select(production).where(production.c.name == name)
    row = (await connection.execute(query.with_for_update() if lock else query)).one_or_none()
    if row is None:
        raise ProductionMissing(name=name)
    return row


def _plan(wanted: Stage) -> list[PlannedCell]:
    try:
        cells = plan(wanted.grid)
        _check_size(wanted, cells)
        return list(cells)
    except ExpressionError as error:
        raise ExpressionInvalid(
            f"{wanted.name}: {error}.", expression=error.expression, position=error.position
        ) from None


def _check_size(wanted: Stage, cells: Plan) -> None:
    if not 1 <= len(cells) <= MAX_CELLS:
        path = f"production.stages[{wanted.name}].grid"
        raise FieldInvalid.of(path, f"has {len(cells)} cells; 1 to {MAX_CELLS} are possible")


def _row(wanted: Production) -> dict[str, object]:
    now = datetime.now(UTC)
    return {
        "uid": new_uid(),
        "name": wanted.name,
        "description": wanted.description,
        "tags": dict(wanted.tags),
        "priority": wanted.priority,
        "owner": current_principal().subject,
        "state": Production.STATE_ACTIVE,
        "message": "",
        "create_time": now,
        "update_time": now,
        "version": 1,
        "cancelling": False,
    }


def _stage_row(production_id: int, position: int, wanted: Stage) -> dict[str, object]:
    kept = Stage()
    kept.CopyFrom(wanted)
    kept.ClearField("progress")
    has_files = wanted.HasField("data") and not takes_outputs(wanted)
    return {
        "production_id": production_id,
        "position": position,
        "name": wanted.name,
        "wanted": kept.SerializeToString(deterministic=True),
        "complete": False,
        "listing": Listing.NEEDED if has_files else Listing.FINAL,
        "flushed": False,
        "input_files": 0,
        "jobs_total": 0,
        "jobs_succeeded": 0,
        "jobs_failed": 0,
        "outcomes": "",
    }


def _planned(wanted: Production, plans: dict[str, list[PlannedCell]]) -> pb.CreateProductionResponse:
    """Answer what would be made."""
    answer = pb.CreateProductionResponse(production=wanted)
    answer.production.ClearField("progress")
    for one in answer.production.stages:
        cells = list(_cells(wanted.name, one, plans.get(one.name, ())))
        answer.cells.extend(cells)
        requested = sum(each.requested_events for each in cells)
        to_go = sum(each.progress.jobs_to_go for each in cells)
        one.progress.CopyFrom(Progress(requested_events=requested, jobs_to_go=to_go))
        answer.production.progress.requested_events += requested
        answer.production.progress.jobs_to_go += to_go
    return answer


def _cells(name: str, wanted: Stage, planned: Sequence[PlannedCell]) -> Iterator[Cell]:
    return (cell_message(name, wanted.name, one) for one in planned)
