"""Jobs: how fast they are accepted, and how fast trivial ones run to their end against bare process starts."""

import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import uuid4

from google.protobuf.json_format import ParseDict

from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.api.scheduler.v1.job_pb2 import Job
from khomas.api.scheduler.v1.job_spec_pb2 import JobSpec
from khomas.kit.testing import serve
from khomas.scheduler.app import service
from khomas.scheduler.testing import Scheduler
from tests.performance.figures import Figure, compared

_TRUE = "/bin/true"
_WAITING = {"limits": {"start_after": "2100-01-01T00:00:00Z"}}


async def measure(rounds: int, jobs: int = 1000) -> list[Figure]:
    """Measure with client and service in one process, SQLite and the local backend; the goals are those of `jobs`."""
    with tempfile.TemporaryDirectory(prefix="khomas-") as folder:
        async with serve(service, state=Path(folder)) as served:
            scheduler = Scheduler(served)
            await scheduler.run(_spec())
            return [
                await _repeat("array of 100,000 accepted", "s", rounds, lambda: _array(scheduler, 100_000)),
                await _repeat("1000 distinct jobs in one call", "jobs/s", rounds, lambda: _distinct(scheduler)),
                await _repeat("one job a call, 16 in flight", "jobs/s", rounds, lambda: _single(scheduler)),
                await compared(
                    f"{jobs} `true` to done / bare posix_spawn",
                    lambda: _dispatch(scheduler, jobs),
                    lambda: _bare_spawn(jobs),
                    rounds,
                    "<= 3",
                ),
                await compared(
                    f"{jobs} `true` to done / bare asyncio processes",
                    lambda: _dispatch(scheduler, jobs),
                    lambda: _bare_asyncio(jobs),
                    rounds,
                ),
                await _repeat(f"{jobs} `true` to done", "jobs/s", rounds, lambda: _rate(scheduler, jobs)),
            ]


async def _repeat(name: str, unit: str, rounds: int, once: Callable[[], Awaitable[float]]) -> Figure:
    return Figure(name, unit, [await once() for _ in range(rounds)])


def _spec(**spec: object) -> JobSpec:
    return ParseDict({"command": {"executable": _TRUE}, **spec}, JobSpec())


def _request(*specs: JobSpec) -> pb.BatchCreateJobsRequest:
    return pb.BatchCreateJobsRequest(jobs=[Job(spec=spec) for spec in specs], request_id=str(uuid4()))


async def _array(scheduler: Scheduler, size: int) -> float:
    request = _request(_spec(splitter={"count": {"count": size}}, **_WAITING))
    begin = time.perf_counter()
    await scheduler.stub.BatchCreateJobs(request)
    return time.perf_counter() - begin


async def _distinct(scheduler: Scheduler) -> float:
    specs = [_spec(tags={"prod": "26"}, note=f"job {number}", **_WAITING) for number in range(1000)]
    request = _request(*specs)
    begin = time.perf_counter()
    await scheduler.stub.BatchCreateJobs(request)
    return 1000 / (time.perf_counter() - begin)


async def _single(scheduler: Scheduler, calls: int = 480, in_flight: int = 16) -> float:
    requests = iter([_request(_spec(note=str(number), **_WAITING)) for number in range(calls)])

    stub = scheduler.stub

    async def client() -> None:
        for request in requests:
            await stub.BatchCreateJobs(request)

    begin = time.perf_counter()
    await asyncio.gather(*[client() for _ in range(in_flight)])
    return calls / (time.perf_counter() - begin)


async def _dispatch(scheduler: Scheduler, jobs: int) -> float:
    """From the submission to the durable state of the last one."""
    begin = time.perf_counter()
    [array] = await scheduler.submit(_spec(splitter={"count": {"count": jobs}}))
    await scheduler.wait(array.name, seconds=120, pause=0.05)
    return time.perf_counter() - begin


async def _rate(scheduler: Scheduler, jobs: int) -> float:
    return jobs / await _dispatch(scheduler, jobs)


async def _bare_spawn(jobs: int) -> float:
    """The limit: start and wait, as many at a time as there are cores."""

    def work() -> float:
        begin = time.perf_counter()
        running = 0
        for _ in range(jobs):
            os.posix_spawn(_TRUE, [_TRUE], os.environ)
            running += 1
            if running >= (os.cpu_count() or 1):
                os.wait()
                running -= 1
        for _ in range(running):
            os.wait()
        return time.perf_counter() - begin

    return await asyncio.to_thread(work)


async def _bare_asyncio(jobs: int) -> float:
    limit = asyncio.Semaphore(os.cpu_count() or 1)

    async def one() -> None:
        async with limit:
            process = await asyncio.create_subprocess_exec(_TRUE)
            await process.wait()

    begin = time.perf_counter()
    await asyncio.gather(*[one() for _ in range(jobs)])
    return time.perf_counter() - begin
