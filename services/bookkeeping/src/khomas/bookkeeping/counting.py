"""Counts what the jobs of productions produced, each job once."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase

from sqlalchemy import Table, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.bookkeeping.v1.production_pb2 import Cell, GridSource, Stage, WorkItem
from khomas.api.common.v1.event_pb2 import Event
from khomas.api.scheduler.v1.job_pb2 import Job
from khomas.api.scheduler.v1.state_pb2 import JobState, Reason
from khomas.bookkeeping.arrivals import row_of
from khomas.bookkeeping.failures import count_failures
from khomas.bookkeeping.items import items_changed
from khomas.bookkeeping.stages import failure_window, max_tries, takes_outputs
from khomas.bookkeeping.tables import arrival, cell, finished, stage, submission, work_item
from khomas.kit.database import AnyRow, in_values, insert_many, insert_new, rows_table
from khomas.kit.events import EventLog

FINAL = (JobState.JOB_STATE_SUCCEEDED, JobState.JOB_STATE_FAILED, JobState.JOB_STATE_CANCELLED)


@dataclass(slots=True)
class _CellSum:
    produced: int = 0
    lost: int = 0
    succeeded: int = 0
    failed: int = 0


def jobs_of(events: Iterable[Event]) -> list[Job]:
    """Return the jobs, children and arrays that became final, each once."""
    jobs: dict[str, Job] = {}
    for event in events:
        job = Job()
        if event.resource.Unpack(job) and job.status.state in FINAL:
            jobs[job.uid] = job
    return list(jobs.values())


class Counting:
    """Takes in the ends of jobs."""

    def __init__(self, log: EventLog) -> None:
        self._log = log

    async def handle(self, connection: AsyncConnection, jobs: Sequence[Job]) -> None:
        """Count jobs that became final."""
        origins = {job.origin for job in jobs if job.origin}
        arrays = await _by_uid(connection, submission, origins)
        items = await _by_uid(connection, work_item, origins)
        causes = {**arrays, **items}
        # An array ends after its children and has their origin; they are what counts.
        jobs = [job for job in jobs if job.parent or job.origin not in arrays]
        stage_ids = {job.uid: causes[job.origin].stage_id for job in jobs if job.origin in causes}
        stages = await _locked_stages(connection, set(stage_ids.values()))
        rows = [{"job": uid, "stage_id": stage_id} for uid, stage_id in stage_ids.items()]
        new = {row.job for row in await insert_new(connection, finished, rows, finished.c.job)}
        counted = [job for job in jobs if job.uid in new]
        if not counted:
            return
        wanted = {row.id: Stage.FromString(row.wanted) for row in stages}
        await _count_cells(connection, [(job, arrays[job.origin]) for job in counted if job.origin in arrays], wanted)
        await self._count_items(
            connection, [(job, items[job.origin]) for job in counted if job.origin in items], wanted
        )
        by_stage: dict[int, list[Job]] = defaultdict(list)
        for job in counted:
            by_stage[stage_ids[job.uid]].append(job)
        await _count_stages(connection, stages, by_stage, wanted)
        await count_failures(connection, by_stage)
        await _hand_on(connection, stages, by_stage)

    async def _count_items(
        self, connection: AsyncConnection, ended: Sequence[tuple[Job, AnyRow]], wanted: Mapping[int, Stage]
    ) -> None:
        types = {key: work_item.c[key].type for key in ("id", "state", "job", "message")}
        rows = [
            (row.id, _next_state(job, row, wanted[row.stage_id]), job.name, "" if _succeeded(job) else _why(job))
            for job, row in ended
            if row.state == WorkItem.STATE_ASSIGNED
        ]
        if not rows:
            return
        new = rows_table(connection, types, rows)
        changing = (
            update(work_item)
            .values(state=new.c.state, job=new.c.job, message=new.c.message, update_time=datetime.now(UTC))
            .where(work_item.c.id == new.c.id, work_item.c.state == WorkItem.STATE_ASSIGNED)
            .returning(*work_item.c)
        )
        changed = (await connection.execute(changing)).all()
        await self._log.append(connection, await items_changed(connection, changed))


async def _by_uid(connection: AsyncConnection, table: Table, uids: set[str]) -> dict[str, AnyRow]:
    query = select(table).where(in_values(table.c.uid, uids))
    return {row.uid: row for row in (await connection.execute(query)).all()}


async def _locked_stages(connection: AsyncConnection, ids: set[int]) -> Sequence[AnyRow]:
    query = select(stage).where(in_values(stage.c.id, ids)).order_by(stage.c.id).with_for_update()
    return (await connection.execute(query)).all()


def _succeeded(job: Job) -> bool:
    return job.status.state == JobState.JOB_STATE_SUCCEEDED


def _why(job: Job) -> str:
    reason = Reason.Name(job.status.reason).removeprefix("REASON_")
    return f"{reason}: {job.status.message}" if job.status.message else reason


def _next_state(job: Job, row: AnyRow, wanted: Stage) -> int:
    if _succeeded(job):
        return WorkItem.STATE_PROCESSED
    return WorkItem.STATE_READY if row.tries < max_tries(wanted.data) else WorkItem.STATE_MAX_TRIES


def _events(job: Job, wanted: Stage) -> int:
    """Return how many events a succeeded job counts for."""
    planned = int(job.parameters["events"])
    if wanted.grid.count == GridSource.COUNT_PLANNED or not job.attempts:
        return planned
    return job.attempts[-1].usage.events or planned


async def _count_cells(
    connection: AsyncConnection, ended: Sequence[tuple[Job, AnyRow]], wanted: Mapping[int, Stage]
) -> None:
    sums: dict[int, _CellSum] = defaultdict(_CellSum)
    for job, array in ended:
        one = sums[array.cell_id]
        if _succeeded(job):
            one.produced += _events(job, wanted[array.stage_id])
            one.succeeded += 1
        else:
            one.lost += int(job.parameters["events"])
            one.failed += 1
    if not sums:
        return
    columns = cell.c
    types = dict.fromkeys(("id", "produced", "lost", "succeeded", "failed"), columns.id.type)
    rows = [(cell_id, one.produced, one.lost, one.succeeded, one.failed) for cell_id, one in sums.items()]
    new = rows_table(connection, types, rows)
    await connection.execute(
        update(cell)
        .values(
            produced_events=columns.produced_events + new.c.produced,
            lost_events=columns.lost_events + new.c.lost,
            jobs_succeeded=columns.jobs_succeeded + new.c.succeeded,
            jobs_failed=columns.jobs_failed + new.c.failed,
        )
        .where(columns.id == new.c.id)
    )
    reached = columns.produced_events >= columns.requested_events
    await connection.execute(
        update(cell)
        .values(state=Cell.STATE_DONE)
        .where(in_values(columns.id, sums), columns.state == Cell.STATE_ACTIVE, reached)
    )


async def _count_stages(
    connection: AsyncConnection,
    stages: Sequence[AnyRow],
    jobs: Mapping[int, Sequence[Job]],
    wanted: Mapping[int, Stage],
) -> None:
    types = {"id": stage.c.id.type, "succeeded": stage.c.jobs_total.type, "failed": stage.c.jobs_total.type}
    rows = []
    for row in stages:
        succeeded = sum(_succeeded(job) for job in jobs[row.id])
        # A job that somebody cancelled says nothing about the others.
        new = "".join("01"[job.status.state == JobState.JOB_STATE_FAILED] for job in jobs[row.id])
        outcomes = (row.outcomes + new)[-failure_window(wanted[row.id]) :]
        rows.append((row.id, succeeded, len(jobs[row.id]) - succeeded, outcomes))
    sums = rows_table(connection, {**types, "outcomes": stage.c.outcomes.type}, rows)
    await connection.execute(
        update(stage)
        .values(
            jobs_succeeded=stage.c.jobs_succeeded + sums.c.succeeded,
            jobs_failed=stage.c.jobs_failed + sums.c.failed,
            outcomes=sums.c.outcomes,
        )
        .where(stage.c.id == sums.c.id)
    )


async def _hand_on(connection: AsyncConnection, stages: Sequence[AnyRow], jobs: Mapping[int, Sequence[Job]]) -> None:
    """Tell the stages that live on outputs what was made for them."""
    query = select(stage).where(in_values(stage.c.production_id, {row.production_id for row in stages}))
    siblings = [(row, Stage.FromString(row.wanted)) for row in (await connection.execute(query)).all()]
    rows = [
        row_of(sibling.id, output.name, output.file_uid, selected=not wanted.data.filter)
        for row in stages
        for sibling, wanted in siblings
        if sibling.production_id == row.production_id and row.name in wanted.after and takes_outputs(wanted)
        for job in jobs[row.id]
        if _succeeded(job) and job.attempts
        for output in job.attempts[-1].outputs
        if output.name and _fits(wanted, output.name)
    ]
    await insert_many(connection, arrival, rows, skip_existing=True)


def _fits(wanted: Stage, name: str) -> bool:
    return not wanted.data.match or fnmatchcase(name.rpartition("/")[2], wanted.data.match)
