"""Asks the other services whether they will take what a production is going to ask for."""

from collections.abc import Mapping
from uuid import uuid4

import grpc

from khomas.api.bookkeeping.v1.production_pb2 import Production, Stage
from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.catalog.v1.catalog_service_pb2_grpc import CatalogServiceStub
from khomas.api.scheduler.v1 import scheduler_service_pb2 as scheduler_pb
from khomas.api.scheduler.v1.job_pb2 import Job
from khomas.api.scheduler.v1.job_spec_pb2 import JobSpec
from khomas.api.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceStub
from khomas.bookkeeping.errors import TemplateInvalid
from khomas.bookkeeping.filters import room
from khomas.bookkeeping.planning import PlannedCell
from khomas.bookkeeping.templates import array_of, job_of, labelled
from khomas.kit.boundary.status import reason_of
from khomas.kit.errors import FieldInvalid
from khomas.kit.templating import TemplateError

# Files that are asked for at a time.
_LEAST_ROOM = 50
_REFUSALS = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
)


class Checking:
    """Checks filters with the catalogue and templates with the scheduler."""

    def __init__(self, catalog: CatalogServiceStub, scheduler: SchedulerServiceStub) -> None:
        self._catalog = catalog
        self._scheduler = scheduler

    async def check(self, wanted: Production, first_cells: Mapping[str, PlannedCell]) -> None:
        """Raise for the first stage that could never run."""
        for stage in wanted.stages:
            if stage.data.filter:
                _check_room(stage)
                await self._catalog.ListFiles(
                    catalog_pb.ListFilesRequest(filter=stage.data.filter, page_size=1, view=catalog_pb.FILE_VIEW_BASIC)
                )
            await self._check_template(stage, _example(wanted, stage, first_cells.get(stage.name)))

    async def _check_template(self, stage: Stage, spec: JobSpec) -> None:
        request = scheduler_pb.BatchCreateJobsRequest(
            jobs=[Job(spec=spec)], validate_only=True, request_id=str(uuid4())
        )
        try:
            await self._scheduler.BatchCreateJobs(request)
        except grpc.aio.AioRpcError as error:
            if error.code() not in _REFUSALS:
                raise
            message = f"The scheduler refuses the jobs of the stage {stage.name}: {error.details()}"
            raise TemplateInvalid(message, stage=stage.name, reason=reason_of(error)) from error


def _check_room(stage: Stage) -> None:
    """Raise unless the filter leaves room to ask for files that arrive."""
    if room(stage.data.filter) < _LEAST_ROOM:
        problem = "is too long to be asked of every file that comes; put the files into a dataset, or take fewer terms"
        raise FieldInvalid.of("production.stages.data.filter", problem)


def _example(wanted: Production, stage: Stage, cell: PlannedCell | None) -> JobSpec:
    spec = labelled(stage, wanted.name, wanted.tags, wanted.priority)
    if cell is not None:
        return array_of(spec, cell.parameters, [(1, 1)], cell.events_per_job)
    try:
        return job_of(spec, "1", [], stage.data.path)
    except TemplateError as error:
        raise TemplateInvalid(f"{stage.name}: {error}.", stage=stage.name, reason="EXPRESSION_INVALID") from None
