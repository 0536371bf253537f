"""For tests: a scheduler that accepts everything, and whose jobs end when the test says so."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar
from uuid import uuid4

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage

from khomas.api.bookkeeping.v1 import bookkeeping_service_pb2 as bookkeeping_pb
from khomas.api.bookkeeping.v1.bookkeeping_service_pb2_grpc import BookkeepingServiceStub
from khomas.api.bookkeeping.v1.production_pb2 import Cell, GridSource, Production, Stage, WorkItem
from khomas.api.common.v1 import event_pb2
from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.api.scheduler.v1.job_pb2 import Attempt, Job, OutputFile, Usage
from khomas.api.scheduler.v1.job_spec_pb2 import Command, JobSpec, Output
from khomas.api.scheduler.v1.scheduler_service_pb2_grpc import (
    SchedulerServiceServicer,
    add_SchedulerServiceServicer_to_server,
)
from khomas.api.scheduler.v1.splitter_pb2 import Axis, Derived, GridSplitter
from khomas.api.scheduler.v1.state_pb2 import JobState, Reason
from khomas.kit.boundary.call import Context
from khomas.kit.config import ServiceSettings
from khomas.kit.ids import new_uid
from khomas.kit.service import Host, Running, Service

_EVENTS_AT_ONCE = 500
_PATIENCE = 30.0

Answer = TypeVar("Answer")


class FakeScheduler(SchedulerServiceServicer):
    """Keeps jobs in memory, also over a restart of the service that calls it."""

    # The contract gives the methods their names.
    # ruff: noqa: N802

    def __init__(self) -> None:
        # Jobs and arrays as they were asked for, by name.
        self.jobs: dict[str, Job] = {}
        # Calls by request_id: every one after the first is a repetition.
        self.calls: dict[str, int] = {}
        self.cancelled: list[str] = []
        self.refusal = ""
        self._answers: dict[str, pb.BatchCreateJobsResponse] = {}
        # Jobs and children that have ended, as they were told of, by uid.
        self.told: dict[str, Job] = {}
        # Events before this one are forgotten.
        self.oldest = 0
        self._events: list[event_pb2.Event] = []

    async def BatchCreateJobs(self, request: pb.BatchCreateJobsRequest, context: Context) -> pb.BatchCreateJobsResponse:
        if self.refusal:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, self.refusal)
        if request.validate_only:
            return pb.BatchCreateJobsResponse()
        self.calls[request.request_id] = self.calls.get(request.request_id, 0) + 1
        if request.request_id not in self._answers:
            self._answers[request.request_id] = pb.BatchCreateJobsResponse(
                jobs=[self._made(job) for job in request.jobs]
            )
        return self._answers[request.request_id]

    def _made(self, wanted: Job) -> Job:
        uid = new_uid()
        job = Job(name=f"jobs/{uid}", uid=uid, spec=wanted.spec, origin=wanted.origin)
        job.status.state = JobState.JOB_STATE_PENDING
        self.jobs[job.name] = job
        return Job(name=job.name, uid=uid, origin=job.origin, status=job.status)

    async def BatchCancelJobs(self, request: pb.BatchCancelJobsRequest, context: Context) -> pb.BatchCancelJobsResponse:
        self.cancelled += request.names
        return pb.BatchCancelJobsResponse(cancelled=len(request.names))

    async def BatchGetJobs(self, request: pb.BatchGetJobsRequest, context: Context) -> pb.BatchGetJobsResponse:
        return pb.BatchGetJobsResponse(
            results=[
                pb.JobResult(job=self.jobs[name]) if name in self.jobs else pb.JobResult() for name in request.names
            ]
        )

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:
        """List the children of an array, or what the first tag of a filter lets through."""
        if request.parent:
            told = [job for job in self.told.values() if job.parent == request.parent]
            return pb.ListJobsResponse(jobs=told)
        first, *_ = request.filter.split(" AND ")
        key, _, value = first.removeprefix("tags.").partition(" = ")
        found = [job for job in self.jobs.values() if job.spec.tags[key] == value.strip('"')]
        return pb.ListJobsResponse(jobs=found)

    async def WatchEvents(
        self, request: event_pb2.WatchEventsRequest, context: Context
    ) -> AsyncIterator[event_pb2.WatchEventsResponse]:
        position = int(request.cursor or "0") if request.cursor != "now" else len(self._events)
        if request.cursor.isdigit() and position < self.oldest:
            await context.abort(grpc.StatusCode.OUT_OF_RANGE, "these events are no longer kept")
        while True:
            some = self._events[position : position + _EVENTS_AT_ONCE]
            if some or request.until_now:
                position += len(some)
                yield event_pb2.WatchEventsResponse(events=some, cursor=str(position))
            if request.until_now and position == len(self._events):
                return
            await asyncio.sleep(0 if some else 0.01)

    @property
    def waiting_count(self) -> int:
        """Return how many jobs and children have not ended."""
        return sum(len(job.spec.splitter.args.sets) or 1 for job in self.jobs.values()) - len(self.told)

    @property
    def waiting(self) -> list[Job]:
        """Return the jobs and children that have not ended, each as it would be told of."""
        return [child for job in self.jobs.values() for child in _children(job) if child.uid not in self.told]

    def forget_requests(self) -> None:
        """Forget the answers to calls, as after 24 h."""
        self._answers.clear()

    def finish(
        self,
        jobs: Iterable[Job],
        *,
        reason: Reason.ValueType = Reason.REASON_UNSPECIFIED,
        events: int = 0,
        outputs: Callable[[Job], list[OutputFile]] = lambda job: [],
    ) -> list[Job]:
        """End jobs: SUCCEEDED unless a reason for the failure is given."""
        ended = []
        for job in jobs:
            failed = reason != Reason.REASON_UNSPECIFIED
            state = JobState.JOB_STATE_FAILED if failed else JobState.JOB_STATE_SUCCEEDED
            job.status.state, job.status.reason = state, reason
            attempt = Attempt(number=1, uid=new_uid(), native_id=str(uuid4()), backend="local", node="node1")
            attempt.state = state
            attempt.usage.CopyFrom(Usage(events=events))
            attempt.inputs.extend(given.file for given in job.spec.inputs if given.file)
            attempt.outputs.extend([] if failed else outputs(job))
            job.attempts.append(attempt)
            job.ClearField("spec")
            ended.append(job)
        self.tell(ended)
        return ended

    def tell(self, jobs: Iterable[Job]) -> None:
        """Send the events of jobs that ended; more than once is allowed."""
        for job in jobs:
            self.told[job.uid] = job
            resource = AnyMessage()
            resource.Pack(job)
            self._events.append(
                event_pb2.Event(
                    cursor=str(len(self._events) + 1),
                    uid=new_uid(),
                    kind="scheduler.job.finished",
                    subject=job.name,
                    subject_uid=job.uid,
                    origin=job.origin,
                    resource=resource,
                )
            )


def _children(job: Job) -> Iterable[Job]:
    sets = job.spec.splitter.args.sets
    if not sets:
        copy = Job()
        copy.CopyFrom(job)
        yield copy
    for index, one in enumerate(sets):
        yield Job(
            name=f"{job.name}/{index}",
            uid=f"{job.uid}/{index}",
            parent=job.name,
            index=index,
            origin=job.origin,
            parameters=one.parameters,
        )


def scheduler_service(scheduler: FakeScheduler) -> "Service[ServiceSettings]":
    """Return the fake as a service to run."""

    async def start(settings: ServiceSettings, host: Host) -> Running:
        return Running(add_to=lambda server: add_SchedulerServiceServicer_to_server(scheduler, server))

    return Service("scheduler", ServiceSettings, start)


def request_id() -> str:
    """Return a fresh one."""
    return str(uuid4())


def template(*arguments: str) -> JobSpec:
    """Return the job of a stage: a program that makes FITS files."""
    return JobSpec(
        command=Command(executable="program", arguments=arguments or ("{group}",)),
        outputs=[Output(glob="*.fits", name_pattern="/out/{file}")],
    )


def shower_grid(*zeniths: float, requested: str, each: str, **options: Any) -> Production:
    """Return a production of one stage with an axis `zenith`."""
    axis = Axis(name="zenith")
    for zenith in zeniths:
        axis.values.add(number_value=zenith)
    derived = [Derived(name="emin", expression="0.005 / cos(radians(zenith))")]
    source = GridSource(
        grid=GridSplitter(axes=[axis], derived=derived), requested_events=requested, events_per_job=each
    )
    stage = Stage(name="simulate", job=template("{zenith:02d}", "{seed}", "{first_event}"), grid=source, **options)
    return Production(name="productions/showers", stages=[stage], tags={"code": "kaskade"})


class Client:
    """Shorthand for what tests ask, and for waiting until it is so."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stub = BookkeepingServiceStub(channel)

    async def begin(self, wanted: Production) -> Production:
        """Make a production."""
        request = bookkeeping_pb.CreateProductionRequest(production=wanted, request_id=request_id())
        return (await self.stub.CreateProduction(request)).production

    async def get(self, name: str) -> Production:
        """Read a production."""
        return await self.stub.GetProduction(bookkeeping_pb.GetProductionRequest(name=name))

    async def in_state(self, name: str, state: Production.State.ValueType) -> Production:
        """Wait until a production is in this state."""

        async def look() -> Production | None:
            now = await self.get(name)
            return now if now.state == state else None

        return await until(look)

    async def items(self, name: str) -> Sequence[WorkItem]:
        """List the work items of a production."""
        return (await self.stub.ListWorkItems(bookkeeping_pb.ListWorkItemsRequest(production=name))).work_items

    async def cells(self, name: str) -> Sequence[Cell]:
        """List the cells of a production."""
        return (await self.stub.ListCells(bookkeeping_pb.ListCellsRequest(production=name))).cells

    async def cells_when(self, name: str, right: Callable[[Sequence[Cell]], bool]) -> Sequence[Cell]:
        """Wait until the cells are as they should be."""

        async def look() -> Sequence[Cell] | None:
            now = await self.cells(name)
            return now if right(now) else None

        return await until(look)

    async def waiting(self, scheduler: FakeScheduler, count: int) -> list[Job]:
        """Wait until the scheduler has so many jobs that have not ended."""

        async def look() -> list[Job] | None:
            return scheduler.waiting if scheduler.waiting_count == count else None

        return await until(look)


async def until(look: Callable[[], Awaitable[Answer | None]]) -> Answer:
    """Look until there is something."""
    async with asyncio.timeout(_PATIENCE):
        while True:
            if (seen := await look()) is not None:
                return seen
            await asyncio.sleep(0.02)
