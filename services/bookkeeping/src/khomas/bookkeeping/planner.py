"""Decides what each production does next; what the scheduler is to be asked for is recorded, not asked."""

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import Table, and_, func, or_, select, true, update
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.bookkeeping.v1.production_pb2 import Cell, Production, Stage, WorkItem
from khomas.bookkeeping.grouping import Ripeness, ripeness
from khomas.bookkeeping.items import items_changed
from khomas.bookkeeping.orders import order_cells, order_items
from khomas.bookkeeping.progress import changed, complete_by_name, locked_stages
from khomas.bookkeeping.records import Listing
from khomas.bookkeeping.stages import (
    fails_too_often,
    max_active_jobs,
    max_files,
    takes_outputs,
    upstream_complete,
)
from khomas.bookkeeping.tables import arrival, cell, production, stage, work_item
from khomas.kit.database import AnyRow, Database
from khomas.kit.events import EventLog

# What was there before is known, so that a flush takes it.
_LISTED = (Listing.DONE, Listing.FINAL)
_UNFINISHED = (WorkItem.STATE_GROUPED, WorkItem.STATE_READY, WorkItem.STATE_ASSIGNED)


class Planner:
    """Plans every active production, each in one transaction."""

    def __init__(self, database: Database, log: EventLog) -> None:
        self._database = database
        self._log = log

    async def work(self) -> None:
        """Look at all productions that go on; one that goes wrong holds up no other."""
        failures: list[Exception] = []
        query = select(production.c.id).where(production.c.state == Production.STATE_ACTIVE)
        async with self._database.read() as connection:
            ids = (await connection.execute(query)).scalars().all()
        for production_id in ids:
            try:
                async with self._database.write() as connection:
                    await self._plan(connection, production_id)
            except Exception as error:  # noqa: BLE001  told together when all were looked at
                error.add_note(f"while planning production {production_id}")
                failures.append(error)
        if failures:
            raise ExceptionGroup("some productions could not be planned", failures)

    async def _plan(self, connection: AsyncConnection, production_id: int) -> None:
        stages = await locked_stages(connection, production_id)
        query = select(production).where(production.c.id == production_id)
        row = (await connection.execute(query)).one()
        if row.state != Production.STATE_ACTIVE:
            return
        complete = dict(complete_by_name(stages))
        for one in stages:
            if not one.complete:
                wanted = Stage.FromString(one.wanted)
                complete[one.name] = await self._plan_stage(connection, row, one, wanted, complete)
        state, message = await _verdict(connection, stages, complete)
        if state != Production.STATE_ACTIVE:
            await self._end(connection, row.id, state, message)

    async def _plan_stage(
        self, connection: AsyncConnection, owner: AnyRow, row: AnyRow, wanted: Stage, complete: dict[str, bool]
    ) -> bool:
        """Order the jobs that a stage needs now and return whether it is complete."""
        active = row.jobs_total - row.jobs_succeeded - row.jobs_failed
        free = max_active_jobs(wanted) - active
        before = upstream_complete(wanted, complete)
        if wanted.HasField("grid"):
            if before:
                await order_cells(connection, row.id, free, owner.priority)
            done = active == 0 and await _cells_at_rest(connection, row.id)
        else:
            ended = await _drained(connection, row, wanted, before=before)
            rule = ripeness(wanted.data, full=max_files(wanted), drained=ended, now=datetime.now(UTC))
            ripe = await _ripen(connection, row, rule)
            ordered = await order_items(connection, row.id, free, owner.priority)
            await self._log.append(connection, await items_changed(connection, _latest(ripe, ordered)))
            flushed = row.flushed and (takes_outputs(wanted) or row.listing in _LISTED)
            closes = flushed or (ended and (wanted.data.complete_when_drained or takes_outputs(wanted)))
            done = closes and await _items_at_rest(connection, row.id)
        if done:
            await connection.execute(update(stage).values(complete=True).where(stage.c.id == row.id))
        return done

    async def _end(self, connection: AsyncConnection, production_id: int, state: int, message: str) -> None:
        now = datetime.now(UTC)
        final = state != Production.STATE_PAUSED
        values = {"state": state, "message": message, "update_time": now, "end_time": now if final else None}
        ending = update(production).values(**values, version=production.c.version + 1)
        rows = (await connection.execute(ending.where(production.c.id == production_id).returning(*production.c))).all()
        await self._log.append(connection, await changed(connection, rows))


def _latest(ripe: Sequence[AnyRow], ordered: Sequence[AnyRow]) -> list[AnyRow]:
    """Return rows of both, each item once."""
    return list({row.id: row for row in (*ripe, *ordered)}.values())


async def _drained(connection: AsyncConnection, row: AnyRow, wanted: Stage, *, before: bool) -> bool:
    """Tell whether no more files can come."""
    if takes_outputs(wanted):
        if not before:
            return False
    elif row.listing != Listing.FINAL:
        return False
    return await _nothing_arrived(connection, row.id)


async def _nothing_arrived(connection: AsyncConnection, stage_id: int) -> bool:
    query = select(arrival.c.file).where(arrival.c.stage_id == stage_id).limit(1)
    return (await connection.execute(query)).first() is None


async def _ripen(connection: AsyncConnection, row: AnyRow, rule: Ripeness) -> Sequence[AnyRow]:
    """Make complete groups READY."""
    columns = work_item.c
    ways = [columns.file_count >= rule.full]
    if rule.quiet_since is not None:
        ways.append(and_(columns.file_count >= rule.enough, columns.growth_time <= rule.quiet_since))
    if rule.begun_before is not None:
        ways.append(columns.create_time <= rule.begun_before)
    ripening = (
        update(work_item)
        .values(state=WorkItem.STATE_READY, update_time=datetime.now(UTC))
        .where(
            columns.stage_id == row.id,
            columns.state == WorkItem.STATE_GROUPED,
            true() if row.flushed else or_(*ways),
        )
        .returning(*columns)
    )
    return (await connection.execute(ripening)).all()


async def _items_at_rest(connection: AsyncConnection, stage_id: int) -> bool:
    """Tell whether every work item was processed, or will never be, and no file waits."""
    query = select(work_item.c.id).where(
        work_item.c.stage_id == stage_id,
        work_item.c.state.in_([*_UNFINISHED, WorkItem.STATE_MAX_TRIES]),
    )
    busy = (await connection.execute(query.limit(1))).first()
    return busy is None and await _nothing_arrived(connection, stage_id)


async def _cells_at_rest(connection: AsyncConnection, stage_id: int) -> bool:
    query = select(cell.c.id).where(cell.c.stage_id == stage_id, cell.c.state != Cell.STATE_DONE)
    return (await connection.execute(query.limit(1))).first() is None


async def _verdict(connection: AsyncConnection, stages: Sequence[AnyRow], complete: dict[str, bool]) -> tuple[int, str]:
    """Say how a production stands after its stages were planned."""
    if all(complete.values()):
        return Production.STATE_COMPLETED, await _lost(connection, stages)
    for row in stages:
        wanted = Stage.FromString(row.wanted)
        at_rest = row.jobs_total == row.jobs_succeeded + row.jobs_failed
        if not complete[row.name] and fails_too_often(wanted, row.outcomes, at_rest=at_rest):
            failed = row.outcomes.count("1")
            message = f"{failed} of the last {len(row.outcomes)} jobs of {row.name} failed; look at one, then resume."
            return Production.STATE_PAUSED, message
    failed_cells = await _counts(connection, stages, cell, Cell.STATE_FAILED)
    given_up = await _counts(connection, stages, work_item, WorkItem.STATE_MAX_TRIES)
    for row in stages:
        at_rest = row.jobs_total == row.jobs_succeeded + row.jobs_failed
        if at_rest and row.id in failed_cells:
            message = f"{failed_cells[row.id]} cells of {row.name} were given up after their maximum of jobs."
            return Production.STATE_FAILED, message
        if at_rest and row.id in given_up and not await _any_item(connection, row.id, _UNFINISHED):
            message = f"{given_up[row.id]} work items of {row.name} failed too often; resume to try them again."
            return Production.STATE_PAUSED, message
    return Production.STATE_ACTIVE, ""


async def _lost(connection: AsyncConnection, stages: Sequence[AnyRow]) -> str:
    """Say how many files no job got, because they were deleted first."""
    query = select(func.sum(work_item.c.file_count)).where(
        work_item.c.stage_id.in_([row.id for row in stages]), work_item.c.state == WorkItem.STATE_MISSING
    )
    count = (await connection.execute(query)).scalar()
    return f"{count} files were deleted before a job got them." if count else ""


async def _any_item(connection: AsyncConnection, stage_id: int, states: Sequence[int]) -> bool:
    query = select(work_item.c.id).where(work_item.c.stage_id == stage_id, work_item.c.state.in_(states))
    return (await connection.execute(query.limit(1))).first() is not None


async def _counts(connection: AsyncConnection, stages: Sequence[AnyRow], table: Table, state: int) -> dict[int, int]:
    """Return how many rows of each stage are in a state."""
    query = (
        select(table.c.stage_id, func.count().label("number"))
        .where(table.c.stage_id.in_([row.id for row in stages]), table.c.state == state)
        .group_by(table.c.stage_id)
    )
    return {row.stage_id: row.number for row in await connection.execute(query)}
