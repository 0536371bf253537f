"""Asks for more events of a grid stage."""

from collections.abc import Iterable, Sequence
from math import floor

from sqlalchemy import and_, case, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.bookkeeping.v1.production_pb2 import Cell, Stage
from khomas.bookkeeping.cells import most_jobs
from khomas.bookkeeping.errors import ExpressionInvalid, StageMissing
from khomas.bookkeeping.records import Listing
from khomas.bookkeeping.tables import cell, production, stage
from khomas.kit.database import AnyRow, rows_table
from khomas.kit.errors import FieldInvalid
from khomas.kit.expressions import ExpressionError, parse_expression


async def raise_targets(connection: AsyncConnection, production_id: int, wanted: Iterable[Stage]) -> bool:
    """Set new targets of grid stages and tell whether there is something to do again."""
    query = select(stage).where(stage.c.production_id == production_id).order_by(stage.c.position)
    stages = {row.name: row for row in (await connection.execute(query.with_for_update())).all()}
    again: set[str] = set()
    for one in wanted:
        if not one.HasField("grid"):
            continue
        row = stages.get(one.name)
        if row is None or not Stage.FromString(row.wanted).HasField("grid"):
            raise StageMissing(production=await _name(connection, production_id), stage=one.name)
        if await _raise(connection, row, one.grid.requested_events):
            again.add(one.name)
    await _open(connection, list(stages.values()), again)
    return bool(again)


async def _name(connection: AsyncConnection, production_id: int) -> str:
    query = select(production.c.name).where(production.c.id == production_id)
    name: str = (await connection.execute(query)).scalar_one()
    return name


async def _raise(connection: AsyncConnection, row: AnyRow, source: str) -> bool:
    """Give the cells of a stage their new target and tell whether one of them needs more."""
    kept = Stage.FromString(row.wanted)
    kept.grid.requested_events = source
    cells = (await connection.execute(select(cell).where(cell.c.stage_id == row.id))).all()
    targets = _targets(row.name, source, cells)
    types = dict.fromkeys(("id", "requested", "max_jobs"), cell.c.id.type)
    new = rows_table(
        connection,
        types,
        [
            (one.id, requested, max(one.max_jobs, most_jobs(kept.grid, requested, one.events_per_job)))
            for one, requested in targets
        ],
    )
    reopened = and_(cell.c.state == Cell.STATE_DONE, cell.c.produced_events < new.c.requested)
    await connection.execute(
        update(cell)
        .values(
            requested_events=new.c.requested,
            max_jobs=new.c.max_jobs,
            state=case((reopened, Cell.STATE_ACTIVE), else_=cell.c.state),
        )
        .where(cell.c.id == new.c.id)
    )
    wanted = kept.SerializeToString(deterministic=True)
    await connection.execute(update(stage).values(wanted=wanted).where(stage.c.id == row.id))
    return any(one.produced_events < requested for one, requested in targets)


def _targets(name: str, source: str, cells: Sequence[AnyRow]) -> list[tuple[AnyRow, int]]:
    try:
        expression = parse_expression(source)
        targets = [(one, floor(expression.number(dict(one.parameters)))) for one in cells]
    except ExpressionError as error:
        raise ExpressionInvalid(f"{name}: {error}.", expression=error.expression, position=error.position) from None
    for one, requested in targets:
        if requested < one.requested_events:
            path = f"production.stages[{name}].grid.requested_events"
            raise FieldInvalid.of(path, f"asks for {requested} events where {one.requested_events} were asked for")
    return targets


async def _open(connection: AsyncConnection, stages: Sequence[AnyRow], again: set[str]) -> None:
    """Make stages that have something to do again, and all that come after them, incomplete."""
    after = {row.name: set(Stage.FromString(row.wanted).after) for row in stages}
    while more := {name for name in after.keys() - again if after[name] & again}:
        again |= more
    ids = [row.id for row in stages if row.name in again]
    listing = case((stage.c.listing == Listing.FINAL, Listing.DONE), else_=stage.c.listing)
    await connection.execute(update(stage).values(complete=False, listing=listing).where(stage.c.id.in_(ids)))
