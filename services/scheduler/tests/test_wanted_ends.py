"""Ends that are wanted: at a deadline, by people, at backends that do not answer or that are gone."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import insert, select

from khomas.api.common.v1.event_pb2 import WatchEventsRequest
from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.api.scheduler.v1.job_pb2 import Job
from khomas.api.scheduler.v1.state_pb2 import DesiredState, JobState, Reason
from khomas.kit.ids import new_uids
from khomas.kit.testing import serve
from khomas.scheduler import tables
from khomas.scheduler.testing import Scheduler, shell, states
from khomas.scheduler.testing.backend import BatchSystem, Handover, memory_scheduler

FAST = {"poll": 0.05, "initial_backoff": 0.05, "collect_after": 0.2, "find_pause": 0.1}
SUBMITTING, QUEUED = JobState.JOB_STATE_SUBMITTING, JobState.JOB_STATE_QUEUED
RUNNING, STALLED = JobState.JOB_STATE_RUNNING, JobState.JOB_STATE_STALLED


class Deaf(BatchSystem):
    """A batch system that ends nothing, and takes jobs when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.taking = asyncio.Event()
        self.taking.set()

    async def submit(self, items: Any) -> Any:
        await self.taking.wait()
        return await super().submit(items)

    async def cancel(self, ids: Any, grace: timedelta) -> Any:
        raise ConnectionError("no answer")


@contextlib.asynccontextmanager
async def running(folder: Path, system: BatchSystem, *others: str, **settings: Any) -> AsyncIterator[Scheduler]:
    """A scheduler over a batch system that is known under all these names."""
    service = memory_scheduler(system, others=dict.fromkeys(others, system))
    async with serve(service, state=folder, settings={"scheduler": FAST | settings}) as served:
        yield Scheduler(served)


async def cancel(scheduler: Scheduler, job: Job, reason: str) -> None:
    request = pb.BatchCancelJobsRequest(names=[job.name], reason=reason, request_id=str(uuid4()))
    await scheduler.stub.BatchCancelJobs(request)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def wanted(scheduler: Scheduler, job: Job) -> Job:
    """Wait until the end of a job is wanted."""
    async with asyncio.timeout(10):
        while (now := await scheduler.get(job.name)).status.desired != DesiredState.DESIRED_STATE_CANCEL:
            await asyncio.sleep(0.02)
    return now


async def events(scheduler: Scheduler, name: str) -> list[int]:
    """The versions of a job that its events tell."""
    found = []
    async for batch in scheduler.stub.WatchEvents(WatchEventsRequest(until_now=True)):
        for event in batch.events:
            job = Job()
            if event.subject == name and event.resource.Unpack(job):
                found.append(job.status.version)
    return found


def soon(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")


async def test_job_is_given_up_once_whether_its_backend_hears_or_not(tmp_path: Path) -> None:
    system = Deaf()
    async with running(tmp_path, system) as scheduler:
        [job] = await scheduler.submit(shell("true", limits={"finish_before": soon(2)}))
        await until(lambda: system.going)
        system.start(system.going[0])
        late = await wanted(scheduler, job)
        assert late.status.reason == Reason.REASON_LIMIT_DEADLINE
        await asyncio.sleep(1)
        assert (await scheduler.get(job.name)).status.version == late.status.version
        system.end(system.going[0], 600)
        ended = await scheduler.wait(job.name)
        assert (states([ended]), ended.status.reason) == (["FAILED"], Reason.REASON_LIMIT_DEADLINE)
        assert "not finished by" in ended.status.message


async def test_late_jobs_that_cannot_be_ended_do_not_hide_others(tmp_path: Path) -> None:
    system = Deaf()
    async with running(tmp_path, system) as scheduler:
        [job] = await scheduler.submit(shell("true"))
        await scheduler.wait(job.name, [QUEUED])
        past = datetime.now(UTC) - timedelta(hours=1)
        async with scheduler.parts.database.write() as connection:
            row = (await connection.execute(select(tables.job))).one()._asdict()
            rows = [row | {"uid": uid, "deadline": past} for uid in new_uids(1000)]
            await connection.execute(insert(tables.job), rows)
        limits = {"start_after": "2100-01-01T00:00:00Z", "start_before": soon(1)}
        [waiting] = await scheduler.submit(shell("true", limits=limits))
        assert states([await scheduler.wait(waiting.name)]) == ["FAILED"]


async def test_deadline_that_a_job_keeps_is_no_step(tmp_path: Path, system: BatchSystem) -> None:
    async with running(tmp_path, system) as scheduler:
        [job] = await scheduler.submit(shell("true", limits={"start_before": soon(2)}))
        await until(lambda: system.going)
        system.start(system.going[0])
        await asyncio.sleep(2.5)
        told = await events(scheduler, job.name)
        assert told == sorted(set(told))
        assert states([await scheduler.get(job.name)]) == ["RUNNING"]


async def test_deadline_takes_nobodys_reason_for_a_cancel_away(tmp_path: Path) -> None:
    system = Deaf()
    async with running(tmp_path, system) as scheduler:
        [job] = await scheduler.submit(shell("true", limits={"start_before": soon(2)}))
        await scheduler.wait(job.name, [QUEUED])
        await cancel(scheduler, job, "wrong calibration")
        await cancel(scheduler, job, "")
        await asyncio.sleep(2.5)
        system.end(system.going[0], 600)
        ended = await scheduler.wait(job.name)
        assert (states([ended]), ended.status.message) == (["CANCELLED"], "cancelled: wrong calibration")


@pytest.mark.parametrize("handover", [Handover.ACCEPT, Handover.ANSWER_LOST])
async def test_reason_of_a_cancel_outlives_the_handover(tmp_path: Path, handover: Handover) -> None:
    system = Deaf()
    system.taking.clear()
    system.handover = handover
    async with running(tmp_path, system) as scheduler:
        [job] = await scheduler.submit(shell("true"))
        await scheduler.wait(job.name, [SUBMITTING])
        await cancel(scheduler, job, "wrong calibration")
        system.taking.set()
        await until(lambda: system.going)
        await scheduler.wait(job.name, [QUEUED])
        system.end(system.going[0], 600)
        ended = await scheduler.wait(job.name)
        assert (states([ended]), ended.status.message) == (["CANCELLED"], "cancelled: wrong calibration")


async def test_job_says_itself_how_long_it_may_be_silent(tmp_path: Path, system: BatchSystem) -> None:
    async with running(tmp_path, system) as scheduler:
        short, usual = await scheduler.submit(shell("true", limits={"heartbeat_timeout": "1s"}), shell("true"))
        for job in (short, usual):
            await scheduler.wait(job.name, [QUEUED])
        system.answers = False
        stalled = await scheduler.wait(short.name, [STALLED])
        assert stalled.status.reason == Reason.REASON_INFRA_HEARTBEAT_LOST
        assert stalled.attempts[0].message == "no sign of life for 1 s"
        assert states([await scheduler.get(usual.name)]) == ["QUEUED"]
        system.answers = True
        await scheduler.wait(short.name, [QUEUED])


async def test_local_jobs_are_not_called_silent_between_full_looks(tmp_path: Path, scheduler: Scheduler) -> None:
    [job] = await scheduler.submit(shell("sleep 3", limits={"heartbeat_timeout": "0.5s"}))
    ended = await scheduler.wait(job.name)
    assert states([ended]) == ["SUCCEEDED"]
    async for batch in scheduler.stub.WatchEvents(WatchEventsRequest(until_now=True)):
        for event in batch.events:
            seen = Job()
            event.resource.Unpack(seen)
            assert seen.status.state != STALLED


async def test_job_at_a_backend_that_is_not_configured_any_more_can_be_cancelled(
    tmp_path: Path, system: BatchSystem
) -> None:
    spec = shell("true", placement={"backends": ["lyon"]})
    async with running(tmp_path, system, "lyon") as scheduler:
        job, late = await scheduler.submit(spec, spec)
        await scheduler.wait(job.name, [QUEUED])
        await scheduler.wait(late.name, [QUEUED])
    async with running(tmp_path, system) as scheduler:
        stalled = await scheduler.wait(job.name, [STALLED])
        said = "lyon is not configured any more: configure it again, or cancel the job"
        assert stalled.status.message == said
        await cancel(scheduler, job, "lyon is closed")
        ended = await scheduler.wait(job.name)
        assert (states([ended]), ended.status.message) == (["CANCELLED"], "cancelled: lyon is closed")
        told = await events(scheduler, late.name)
        await asyncio.sleep(0.5)
        assert await events(scheduler, late.name) == told
    async with running(tmp_path, system, "lyon") as scheduler:
        await scheduler.wait(late.name, [QUEUED])


async def test_job_that_may_have_arrived_at_a_backend_that_is_gone_is_looked_for_when_it_is_back(
    tmp_path: Path, system: BatchSystem
) -> None:
    system.handover = Handover.ANSWER_LOST
    spec = shell("true", placement={"backends": ["lyon"]})
    async with running(tmp_path, system, "lyon", find_pause=60) as scheduler:
        job, other = await scheduler.submit(spec, spec)
        for one in (job, other):
            await scheduler.wait(one.name, [SUBMITTING])
        await until(lambda: len(system.submitted) == 2)
    async with running(tmp_path, system) as scheduler:
        async with asyncio.timeout(10):
            while "lyon is not configured" not in (await scheduler.get(job.name)).status.message:
                await asyncio.sleep(0.02)
        assert not await scheduler.parts.engine.dispatcher.step()
        await cancel(scheduler, other, "")
        assert states([await scheduler.wait(other.name)]) == ["CANCELLED"]
    async with running(tmp_path, system, "lyon") as scheduler:
        await scheduler.wait(job.name, [QUEUED])
    assert len(system.submitted) == 2
