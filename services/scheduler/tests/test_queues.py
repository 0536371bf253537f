"""Which queue a job is given to, from the choice to the batch system."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.api.scheduler.v1.job_pb2 import Job
from khomas.api.scheduler.v1.job_spec_pb2 import JobSpec
from khomas.api.scheduler.v1.placement_pb2 import Backend
from khomas.api.scheduler.v1.state_pb2 import Reason
from khomas.kit.testing import serve
from khomas.scheduler.backends.interface import ComputeResource
from khomas.scheduler.testing import Scheduler, shell
from khomas.scheduler.testing.backend import BatchSystem, Handover, memory_scheduler

SHORT = ComputeResource("short", cpu_milli=64000, max_wall_time=timedelta(hours=1), is_default=True)
LONG = ComputeResource("long", cpu_milli=64000, max_wall_time=timedelta(days=7))
FAST = {"poll": 0.05, "initial_backoff": 0.05, "find_pause": 0.05}


@dataclass(slots=True)
class Desk:
    system: BatchSystem
    scheduler: Scheduler

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.01)

    async def look(self) -> None:
        """Have the queues looked at."""
        await self.scheduler.parts.desk.sites.look(5)

    async def refused(self, job: Job) -> Job:
        """Wait until a job was told why it waits."""
        async with asyncio.timeout(20):
            while (found := await self.scheduler.get(job.name)).status.reason != Reason.REASON_WAIT_BACKEND:
                await asyncio.sleep(0.01)
        return found


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    system = BatchSystem(queues=[SHORT, LONG])
    async with serve(memory_scheduler(system), state=tmp_path / "state", settings={"scheduler": FAST}) as served:
        yield Desk(system, Scheduler(served))


def lasting(wall: str, queue: str = "") -> JobSpec:
    return shell("true", resources={"wall_time": wall}, placement={"queue": queue})


async def test_queue_that_was_chosen_is_handed_over_and_kept_with_the_attempt(desk: Desk) -> None:
    jobs = await desk.scheduler.submit(lasting("60s"), lasting("86400s"), lasting("60s", "long"))
    await desk.until(lambda: len(desk.system.items) == 3)
    by_job = {item.manifest["job"]: item.queue for item in desk.system.items.values()}
    assert [by_job[job.name] for job in jobs] == ["", "long", "long"]
    assert [(await desk.scheduler.get(job.name)).attempts[0].queue for job in jobs] == ["", "long", "long"]


async def test_attempt_that_got_lost_on_its_way_goes_to_the_same_queue_again(desk: Desk) -> None:
    desk.system.handover = Handover.CALL_LOST
    await desk.scheduler.submit(lasting("86400s"))
    await asyncio.sleep(0.1)
    desk.system.queues = [replace(SHORT, max_wall_time=None), replace(LONG, closed=True)]
    await desk.look()
    desk.system.handover = Handover.ACCEPT
    await desk.until(lambda: bool(desk.system.items))
    assert [item.queue for item in desk.system.items.values()] == ["long"]


async def test_job_for_a_closed_queue_waits_and_goes_on_when_it_is_opened(desk: Desk) -> None:
    desk.system.queues = [SHORT, replace(LONG, closed=True, message="the partition is down")]
    await desk.look()
    [named, long] = await desk.scheduler.submit(lasting("60s", "long"), lasting("86400s"))
    why = "memory is closed by those who run it: queue long (the partition is down)"
    assert [(await desk.refused(job)).status.message for job in (named, long)] == [why, why]
    [table] = (await desk.scheduler.stub.ListBackends(pb.ListBackendsRequest())).backends
    assert [(row.queue, row.status, row.in_use, row.rank > 0) for row in table.resources] == [
        ("short", Backend.STATUS_PRODUCTION, True, True),
        ("long", Backend.STATUS_CLOSED, False, False),
    ]
    desk.system.queues = [SHORT, LONG]
    await desk.look()
    await desk.until(lambda: len(desk.system.items) == 2)
    assert {item.queue for item in desk.system.items.values()} == {"long"}


async def test_plan_says_which_queue_it_would_be(desk: Desk) -> None:
    jobs = [Job(spec=lasting("86400s"))]
    request = pb.BatchCreateJobsRequest(jobs=jobs, validate_only=True, request_id=str(uuid4()))
    [plan] = (await desk.scheduler.stub.BatchCreateJobs(request)).plans
    assert plan.why.startswith("memory, queue long: rank")
