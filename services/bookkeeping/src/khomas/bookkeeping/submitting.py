"""Asks the scheduler for what is recorded; a repeated call makes nothing twice."""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from sqlalchemy import select, update

from khomas.api.bookkeeping.v1.production_pb2 import Production, Stage
from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.api.scheduler.v1.job_pb2 import Job
from khomas.api.scheduler.v1.job_spec_pb2 import JobSpec
from khomas.api.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceStub
from khomas.bookkeeping.items import files_of, items_changed
from khomas.bookkeeping.pausing import AWAY, REFUSALS, Pausing
from khomas.bookkeeping.tables import cell, production, stage, submission, work_item
from khomas.bookkeeping.templates import array_of, job_of, labelled
from khomas.kit.boundary.status import reason_of
from khomas.kit.database import AnyRow, Database, rows_table
from khomas.kit.events import EventLog
from khomas.kit.templating import TemplateError

_AT_ONCE = 100
_CALL_SECONDS = 120.0
_PAGE = 10_000
# The scheduler knows a request_id for 24 h; after this time it is better to look what is there.
_REMEMBERED = timedelta(hours=20)


class Submitting:
    """Hands recorded submissions to the scheduler."""

    def __init__(self, database: Database, log: EventLog, scheduler: SchedulerServiceStub, pausing: Pausing) -> None:
        self._database = database
        self._log = log
        self._scheduler = scheduler
        self._pausing = pausing

    async def work(self) -> None:
        """Submit everything that active productions wait for; one that goes wrong holds up no other."""
        left: dict[int, Exception] = {}
        while pending := await self._pending(left):
            for row in pending:
                if row.production_id in left:
                    continue
                try:
                    await self._submit(row)
                except (TemplateError, grpc.aio.AioRpcError) as error:
                    if isinstance(error, grpc.aio.AioRpcError) and error.code() in AWAY:
                        raise
                    left[row.production_id] = error
                    if isinstance(error, TemplateError) or error.code() in REFUSALS:
                        await self._pause(row, error)
        if unexpected := [error for error in left.values() if _unexpected(error)]:
            raise ExceptionGroup("some jobs could not be submitted", unexpected)

    async def _pending(self, left: Collection[int]) -> Sequence[AnyRow]:
        query = (
            select(
                *submission.c,
                stage.c.wanted,
                stage.c.production_id,
                production.c.name.label("production"),
                production.c.tags,
            )
            .join(stage, stage.c.id == submission.c.stage_id)
            .join(production, production.c.id == stage.c.production_id)
            .where(submission.c.submitted.is_(False), production.c.state == Production.STATE_ACTIVE)
            .where(production.c.id.not_in(left))
            .order_by(submission.c.id)
            .limit(_AT_ONCE)
        )
        async with self._database.read() as connection:
            return (await connection.execute(query)).all()

    async def _submit(self, row: AnyRow) -> None:
        wanted = Stage.FromString(row.wanted)
        spec = labelled(wanted, row.production, row.tags, row.priority)
        if row.cell_id is not None:
            await self._submit_array(row, spec)
        else:
            await self._submit_items(row, spec, wanted)

    async def _submit_array(self, row: AnyRow, spec: JobSpec) -> None:
        async with self._database.read() as connection:
            one = (await connection.execute(select(cell).where(cell.c.id == row.cell_id))).one()
        numbers = [(row.first_run_number + number, row.first_seed + number) for number in range(row.job_count)]
        array = array_of(spec, dict(one.parameters), numbers, one.events_per_job)
        (job,) = await self._call(row, [Job(spec=array, origin=row.uid)])
        async with self._database.write() as connection:
            values = {"submitted": True, "job": job.name}
            await connection.execute(update(submission).values(**values).where(submission.c.id == row.id))

    async def _submit_items(self, row: AnyRow, spec: JobSpec, wanted: Stage) -> None:
        query = select(work_item).where(work_item.c.submission_id == row.id).order_by(work_item.c.id)
        async with self._database.read() as connection:
            items = (await connection.execute(query)).all()
            files: dict[int, list[str]] = {item.id: [] for item in items}
            for member in await connection.execute(files_of(list(files))):
                files[member.item_id].append(member.file)
        path = wanted.data.path
        jobs = [Job(spec=job_of(spec, item.group_value, files[item.id], path), origin=item.uid) for item in items]
        made = await self._call(row, jobs) if jobs else []
        async with self._database.write() as connection:
            types: dict[str, Any] = {"id": work_item.c.id.type, "job": work_item.c.job.type}
            pairs = [(item.id, job.name) for item, job in zip(items, made, strict=True)]
            new = rows_table(connection, types, pairs)
            naming = (
                update(work_item)
                .values(job=new.c.job, update_time=datetime.now(UTC))
                .where(work_item.c.id == new.c.id, work_item.c.submission_id == row.id)
                .returning(*work_item.c)
            )
            named = (await connection.execute(naming)).all() if pairs else []
            await connection.execute(update(submission).values(submitted=True).where(submission.c.id == row.id))
            await self._log.append(connection, await items_changed(connection, named))

    async def _call(self, row: AnyRow, jobs: Sequence[Job]) -> Sequence[Job]:
        if row.create_time < datetime.now(UTC) - _REMEMBERED:
            made = await self._made_before(row)
            if all(job.origin in made for job in jobs):
                return [made[job.origin] for job in jobs]
        request = pb.BatchCreateJobsRequest(jobs=jobs, request_id=row.request_id)
        return (await self._scheduler.BatchCreateJobs(request, timeout=_CALL_SECONDS)).jobs

    async def _made_before(self, row: AnyRow) -> dict[str, Job]:
        """Return what was made for a submission whose request_id the scheduler may have forgotten."""
        tag, stage_name = row.production.removeprefix("productions/"), Stage.FromString(row.wanted).name
        since = row.create_time.isoformat().replace("+00:00", "Z")
        filter_text = f'tags.production = "{tag}" AND tags.stage = "{stage_name}" AND create_time >= "{since}"'
        request = pb.ListJobsRequest(filter=filter_text, page_size=_PAGE)
        made: dict[str, Job] = {}
        while True:
            page = await self._scheduler.ListJobs(request, timeout=_CALL_SECONDS)
            made.update((job.origin, job) for job in page.jobs)
            if not page.next_page_token:
                return made
            request.page_token = page.next_page_token

    async def _pause(self, row: AnyRow, error: TemplateError | grpc.aio.AioRpcError) -> None:
        """A person has to look at what the scheduler refuses."""
        said = str(error) if isinstance(error, TemplateError) else f"{reason_of(error)}: {error.details()}"
        stage_name = Stage.FromString(row.wanted).name
        await self._pausing.pause(row.production_id, f"The scheduler refuses the jobs of {stage_name}: {said}")


def _unexpected(error: Exception) -> bool:
    return isinstance(error, grpc.aio.AioRpcError) and error.code() not in REFUSALS
