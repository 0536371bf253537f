"""Whose turn it is: nobody who cannot start keeps others from starting."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy import select

from khomas.api.common.v1.event_pb2 import WatchEventsRequest
from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.api.scheduler.v1.job_spec_pb2 import JobSpec
from khomas.api.scheduler.v1.state_pb2 import JobState, Reason
from khomas.kit.testing import serve
from khomas.scheduler import tables
from khomas.scheduler.testing import Scheduler, shell, states
from khomas.scheduler.testing.backend import BatchSystem, memory_scheduler

FAST = {"poll": 0.05, "initial_backoff": 0.05, "collect_after": 0.2, "find_pause": 0.1}
FULL = "memory has as many jobs as it may, 1"
QUEUED = (JobState.JOB_STATE_QUEUED,)


@contextlib.asynccontextmanager
async def running(
    folder: Path, url: str, system: BatchSystem, max_jobs: int, other: BatchSystem | None = None, **settings: Any
) -> AsyncIterator[Scheduler]:
    """A scheduler over a backend of few slots, and maybe over `other`, which has many."""
    made = memory_scheduler(system, max_jobs, {"other": other} if other else {})
    urls = {"scheduler": url} if url else {}
    async with serve(made, state=folder, settings={"scheduler": FAST | settings}, database_urls=urls) as served:
        yield Scheduler(served)


def at(backend: str, **spec: object) -> JobSpec:
    return shell("true", placement={"backends": [backend]}, **spec)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def events(scheduler: Scheduler) -> int:
    stream = scheduler.stub.WatchEvents(WatchEventsRequest(until_now=True))
    return sum([len(batch.events) async for batch in stream])


async def said(scheduler: Scheduler, name: str, message: str) -> None:
    """Wait until a job says this."""
    async with asyncio.timeout(20):
        while message not in (await scheduler.get(name)).status.message:
            await asyncio.sleep(0.02)


async def children_with_rows(scheduler: Scheduler, array: str) -> int:
    async with scheduler.parts.database.read() as connection:
        return len((await connection.execute(select(tables.job).where(tables.job.c.parent == array))).all())


async def test_arrays_that_have_enough_running_take_nobodys_place(
    tmp_path: Path, database_url: str, system: BatchSystem
) -> None:
    async with running(tmp_path, database_url, system, 5) as scheduler:
        spec = shell("true", splitter={"count": {"count": 10}, "max_running": 1})
        await scheduler.submit(spec, spec, spec)
        await until(lambda: len(system.going) == 3)
        [single] = await scheduler.submit(shell("true"))
        await scheduler.wait(single.name, QUEUED, 5)


async def test_array_in_an_account_with_enough_running_takes_nobodys_place(
    tmp_path: Path, database_url: str, system: BatchSystem
) -> None:
    async with running(tmp_path, database_url, system, 2, shares={"default": {}}) as scheduler:
        await scheduler.submit(shell("true", splitter={"count": {"count": 10}, "max_running": 1}))
        await until(lambda: len(system.going) == 1)
        [single] = await scheduler.submit(shell("true"))
        await scheduler.wait(single.name, QUEUED, 5)


async def test_children_that_are_tried_again_wait_until_their_array_has_few_enough_running(
    tmp_path: Path, database_url: str, system: BatchSystem
) -> None:
    async with running(tmp_path, database_url, system, 9, initial_backoff=0.0) as scheduler:
        splitter = {"count": {"count": 4}, "max_running": 1}
        [array] = await scheduler.submit(shell("true", splitter=splitter))
        for reason in (402, 402, 402, 0, 0, 0, 0):
            await until(lambda: system.going)
            [token] = system.going
            system.end(token, reason)
        assert states([await scheduler.wait(array.name)]) == ["SUCCEEDED"]


async def test_jobs_for_a_full_backend_let_others_past(tmp_path: Path, database_url: str, system: BatchSystem) -> None:
    other = BatchSystem()
    async with running(tmp_path, database_url, system, 1, other) as scheduler:
        waiting = await scheduler.submit(*[at("memory", priority=10) for _ in range(1500)])
        array, one = await scheduler.submit(at("memory", priority=9, splitter={"count": {"count": 1000}}), at("other"))
        await scheduler.wait(one.name, QUEUED, 15)
        assert len(other.submitted) == 1
        await said(scheduler, waiting[-1].name, FULL)
        assert await children_with_rows(scheduler, array.uid) == 0


async def test_job_that_waits_for_a_full_backend_adds_no_events(tmp_path: Path, system: BatchSystem) -> None:
    async with running(tmp_path, "", system, 1, BatchSystem()) as scheduler:
        _, job = await scheduler.submit(at("memory"), at("memory"))
        await said(scheduler, job.name, FULL)
        before = await events(scheduler)
        await asyncio.sleep(2.5)
        assert await events(scheduler) == before


async def test_those_who_wait_for_a_full_backend_go_in_the_order_of_the_line(
    tmp_path: Path, database_url: str, system: BatchSystem
) -> None:
    async with running(tmp_path, database_url, system, 1, BatchSystem()) as scheduler:
        [first] = await scheduler.submit(at("memory"))
        await scheduler.wait(first.name, QUEUED)
        jobs = []
        for spec in (at("memory"), at("memory", priority=5), at("memory", splitter={"count": {"count": 2}})):
            jobs += await scheduler.submit(spec)
            await said(scheduler, jobs[-1].name, FULL)
        low, high, array = jobs
        for name in (high.name, low.name, f"{array.name}/0", f"{array.name}/1"):
            system.end(system.going[0])
            await scheduler.wait(name, QUEUED, 5)
            assert len(system.going) == 1


async def test_job_held_while_its_backend_is_full_is_not_called(tmp_path: Path, system: BatchSystem) -> None:
    async with running(tmp_path, "", system, 1, BatchSystem()) as scheduler:
        _, held, free = await scheduler.submit(at("memory", priority=2), at("memory", priority=1), at("memory"))
        await said(scheduler, held.name, FULL)
        await said(scheduler, free.name, FULL)
        await scheduler.stub.BatchHoldJobs(pb.BatchHoldJobsRequest(names=[held.name], request_id=str(uuid4())))
        system.end(system.going[0])
        await scheduler.wait(free.name, QUEUED, 5)
        assert (await scheduler.get(held.name)).status.reason == Reason.REASON_WAIT_HELD_BY_USER


async def test_those_who_waited_for_a_full_backend_are_in_line_after_a_restart(
    tmp_path: Path, database_url: str, system: BatchSystem
) -> None:
    other = BatchSystem()
    async with running(tmp_path, database_url, system, 1, other) as scheduler:
        _, job = await scheduler.submit(at("memory", priority=1), at("memory"))
        await said(scheduler, job.name, FULL)
    system.end(system.going[0])
    async with running(tmp_path, database_url, system, 1, other) as scheduler:
        await scheduler.wait(job.name, QUEUED, 5)
