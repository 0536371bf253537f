"""What waiting jobs cost the scheduler: a hundred thousand distinct ones before a backend that is full."""

import asyncio
import json
import tempfile
from pathlib import Path
from uuid import uuid4

from google.protobuf.json_format import ParseDict

from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.api.scheduler.v1.job_pb2 import Job
from khomas.api.scheduler.v1.job_spec_pb2 import JobSpec
from khomas.api.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceStub
from khomas.api.scheduler.v1.state_pb2 import JobState
from khomas.kit.testing.postgresql import postgresql_server
from tests.performance.figures import Figure
from tests.performance.lone import Lone, lone

_TOGETHER = 1000
_MIB = 2**20


async def measure(jobs: int = 100_000, seconds: float = 60.0) -> list[Figure]:
    """Measure on PostgreSQL and on SQLite."""
    with postgresql_server(durable=True) as server, tempfile.TemporaryDirectory(prefix="khomas-") as folder:
        figures = await _measure("PostgreSQL", await server.create_database(), jobs, seconds)
        url = f"sqlite+aiosqlite:///{Path(folder) / 'scheduler.db'}"
        return figures + await _measure("SQLite", url, jobs, seconds)


async def _measure(kind: str, url: str, jobs: int, seconds: float) -> list[Figure]:
    full = {"BACKENDS": json.dumps({"here": {"kind": "local", "max_jobs": 1}})}
    async with lone("scheduler", url, settings=full) as service:
        stub = SchedulerServiceStub(service.channel)
        [blocker] = (await stub.BatchCreateJobs(_request(("sleep", "86400")))).jobs
        await _until(stub, blocker.name, JobState.JOB_STATE_RUNNING)
        empty = await _rest(service, seconds / 4)
        for start in range(0, jobs, _TOGETHER):
            await stub.BatchCreateJobs(_request(*[("true", str(number)) for number in range(start, start + _TOGETHER)]))
        await asyncio.sleep(5)
        full_queue = await _rest(service, seconds)
        memory = service.resident_bytes() / _MIB
        await stub.BatchCancelJobs(pb.BatchCancelJobsRequest(names=[blocker.name], request_id=str(uuid4())))
        await _until(stub, blocker.name, JobState.JOB_STATE_CANCELLED)
    name = f"scheduler with {jobs:,} waiting jobs, {kind}"
    return [
        Figure(f"{name}: CPU in an hour", "s", [3600 * full_queue]),
        Figure(f"{name}: CPU beyond that with none, in an hour", "s", [3600 * (full_queue - empty)]),
        Figure(f"{name}: resident", "MiB", [memory]),
    ]


async def _rest(service: Lone, seconds: float) -> float:
    """CPU seconds a second while nobody calls."""
    before = service.cpu_seconds()
    await asyncio.sleep(seconds)
    return (service.cpu_seconds() - before) / seconds


async def _until(stub: SchedulerServiceStub, name: str, state: int) -> None:
    async with asyncio.timeout(120):
        while (await stub.GetJob(pb.GetJobRequest(name=name))).status.state != state:
            await asyncio.sleep(0.1)


def _request(*commands: tuple[str, str]) -> pb.BatchCreateJobsRequest:
    specs = [ParseDict({"command": {"executable": name, "arguments": [word]}}, JobSpec()) for name, word in commands]
    return pb.BatchCreateJobsRequest(jobs=[Job(spec=spec) for spec in specs], request_id=str(uuid4()))
