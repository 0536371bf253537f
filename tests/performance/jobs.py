"""The scheduler as a client meets it: a process of its own, TLS, token, a durable database."""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import uuid4

from google.protobuf.json_format import ParseDict

from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.api.scheduler.v1.job_pb2 import Job
from khomas.api.scheduler.v1.job_spec_pb2 import JobSpec
from khomas.api.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceStub
from khomas.api.scheduler.v1.state_pb2 import JobState
from khomas.kit.testing.postgresql import postgresql_server
from tests.performance.costs import Call, Calls, by, delays, rates
from tests.performance.figures import Figure
from tests.performance.lone import Lone, lone

_KNOWN = 50_000
_TOGETHER = 1000
_SMALL = 200
_WAITING = {"limits": {"start_after": "2100-01-01T00:00:00Z"}}


async def measure(rounds: int) -> list[Figure]:
    """Measure the goals of the scheduler on PostgreSQL, then on SQLite."""
    with postgresql_server(durable=True) as server, tempfile.TemporaryDirectory(prefix="khomas-") as folder:
        figures = await _measure("PostgreSQL", await server.create_database(), rounds)
        return figures + await _measure("SQLite", f"sqlite+aiosqlite:///{Path(folder) / 'scheduler.db'}", rounds)


async def _measure(kind: str, url: str, rounds: int) -> list[Figure]:
    async with lone("scheduler", url) as service:
        bench = _Bench(kind, service, rounds)
        await bench.prepare()
        return [
            *await bench.ended(),
            *await bench.single(1),
            *await bench.single(16),
            *await bench.together(),
            *await bench.array(),
            *await bench.queries(),
        ]


class _Bench:
    def __init__(self, kind: str, service: Lone, rounds: int) -> None:
        self._kind = kind
        self._service = service
        self._rounds = rounds
        self._stub = SchedulerServiceStub(service.channel)

    async def prepare(self) -> None:
        """Let everything be used once."""
        for _ in range(3):
            await self._stub.BatchCreateJobs(_distinct(10))

    async def ended(self) -> list[Figure]:
        """Run trivial jobs on the local backend, to the durable state of the last one."""

        async def once() -> Calls:
            return Calls(_TOGETHER, [self._run])

        return await self._rates("`true` to done on the local backend", 1, once, ">= 600")

    async def _run(self) -> None:
        answer = await self._stub.BatchCreateJobs(_request(_spec(splitter={"count": {"count": _TOGETHER}})))
        request = pb.GetJobRequest(name=answer.jobs[0].name)
        while (await self._stub.GetJob(request)).status.state != JobState.JOB_STATE_SUCCEEDED:
            await asyncio.sleep(0.05)

    async def single(self, clients: int) -> list[Figure]:
        """Submit one job a call."""

        async def once() -> Calls:
            return Calls(_SMALL, [self._submission(_distinct(1)) for _ in range(_SMALL)])

        return await self._rates(f"jobs submitted, one a call, {by(clients)}", clients, once, ">= 700")

    async def together(self) -> list[Figure]:
        """Submit distinct jobs in one call."""

        async def once() -> Calls:
            return Calls(_TOGETHER, [self._submission(_distinct(_TOGETHER))])

        return await self._rates("distinct jobs submitted, 1000 in one call", 1, once, ">= 10000")

    async def array(self) -> list[Figure]:
        """Submit a long array."""
        name = f"{self._kind}: array of 1,000,000 accepted"

        async def submit() -> None:
            await self._stub.BatchCreateJobs(_request(_spec(splitter={"count": {"count": 1_000_000}}, **_WAITING)))

        return await delays(self._service, name, self._rounds, submit, goal="<= 2000")

    async def queries(self) -> list[Figure]:
        """Read jobs where there are many."""
        for _ in range(_KNOWN // 5000):
            answer = await self._stub.BatchCreateJobs(_distinct(5000))
        one = pb.GetJobRequest(name=answer.jobs[17].name)
        figures = await self._delays("one job", lambda: self._stub.GetJob(one), "<= 1.5")
        for size, goal in ((100, "<= 3"), (1000, "<= 10")):
            request = pb.ListJobsRequest(page_size=size)

            async def read(request: pb.ListJobsRequest = request) -> None:
                assert len((await self._stub.ListJobs(request)).jobs) == request.page_size

            figures += await self._delays(f"page of {size} jobs", read, goal)
        return figures

    async def _rates(self, name: str, clients: int, once: Callable[[], Awaitable[Calls]], goal: str) -> list[Figure]:
        name = f"{self._kind}: {name}"
        return await rates(self._service, name, "jobs", self._rounds, once, clients=clients, goal=goal)

    async def _delays(self, name: str, call: Call, goal: str) -> list[Figure]:
        return await delays(self._service, f"{self._kind}: {name} of 50,000", _SMALL // 4, call, goal=goal)

    def _submission(self, request: pb.BatchCreateJobsRequest) -> Call:
        return lambda: self._stub.BatchCreateJobs(request)


def _spec(**spec: object) -> JobSpec:
    return ParseDict({"command": {"executable": "/bin/true"}, **spec}, JobSpec())


def _distinct(count: int) -> pb.BatchCreateJobsRequest:
    return _request(*[_spec(tags={"prod": "26"}, note=f"job {number}", **_WAITING) for number in range(count)])


def _request(*specs: JobSpec) -> pb.BatchCreateJobsRequest:
    return pb.BatchCreateJobsRequest(jobs=[Job(spec=spec) for spec in specs], request_id=str(uuid4()))
