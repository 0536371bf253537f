"""Bans and drains, by people and by the service; test jobs."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.api.scheduler.v1.job_pb2 import Job
from khomas.api.scheduler.v1.placement_pb2 import Backend
from khomas.api.scheduler.v1.state_pb2 import JobState, Reason
from khomas.kit.testing import serve
from khomas.scheduler.config import BanSettings
from khomas.scheduler.placement.robot import ROBOT
from khomas.scheduler.placement.standing import Reputation, Standing, Status, after_probe, judged
from khomas.scheduler.testing import Scheduler, shell
from khomas.scheduler.testing.backend import BatchSystem, Handover, memory_scheduler

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
RULES = BanSettings()
FAST = {"poll": 0.05, "initial_backoff": 0.05, "collect_after": 0.2, "find_pause": 0.1}


def badly(outcomes: int = 0, refused: int = 0) -> Reputation:
    reputation = Reputation()
    for _ in range(outcomes):
        reputation.ended(False)
    for _ in range(refused):
        reputation.refuses("no such account")
    return reputation


def test_refusals_in_a_row_ban_for_a_while_that_grows() -> None:
    first = judged(Standing("a"), badly(refused=10), RULES, False, NOW)
    assert (first.status, first.until) == (Status.BANNED, NOW + timedelta(minutes=5))
    assert first.reason == "10 submissions went wrong in a row, the last one: no such account"
    again = judged(first, Reputation(), RULES, False, NOW + timedelta(minutes=5))
    assert again.status == Status.PRODUCTION
    second = judged(again, badly(refused=10), RULES, False, NOW)
    assert second.until == NOW + timedelta(minutes=10)
    assert second.said.startswith("banned until 2026-11-21T12:10:00+00:00 by itself, 2 times in a row: 10 submissions")


def test_one_handover_that_works_ends_the_row() -> None:
    reputation = badly(refused=9)
    reputation.handed_over()
    reputation.refuses("no")
    assert judged(Standing("a"), reputation, RULES, False, NOW) == Standing("a")


def test_collapse_needs_a_sample() -> None:
    assert judged(Standing("a"), badly(outcomes=19), RULES, False, NOW).status == Status.PRODUCTION
    banned = judged(Standing("a"), badly(outcomes=20), RULES, False, NOW)
    assert banned.reason == "only 0 of the last 20 jobs were brought to their end"


def test_backend_with_test_jobs_comes_back_by_one_that_succeeds() -> None:
    banned = judged(Standing("a"), badly(refused=10), RULES, True, NOW)
    later = NOW + timedelta(hours=1)
    assert judged(banned, Reputation(), RULES, True, later) == banned
    worse = after_probe(banned, False, "node died", RULES, later)
    assert (worse.bans, worse.until, worse.since) == (2, later + timedelta(minutes=10), NOW)
    assert after_probe(worse, True, "", RULES, later) == Standing("a")


def test_ban_by_a_person_ends_with_its_time_and_is_not_changed_by_the_service() -> None:
    banned = Standing("a", Status.BANNED, "SE down", "olga", NOW, NOW + timedelta(hours=2))
    assert judged(banned, badly(refused=99), RULES, True, NOW) == banned
    assert judged(banned, Reputation(), RULES, True, NOW + timedelta(hours=2)) == Standing("a")


# ----------------------------------------------------------------------------- through the wire


@dataclass(frozen=True, slots=True)
class Desk:
    scheduler: Scheduler
    system: BatchSystem

    async def ban(self, seconds: float = 0, name: str = "backends/memory") -> Backend:
        request = pb.BanBackendRequest(name=name, reason="SE down", request_id=str(uuid4()))
        if seconds:
            request.duration.FromTimedelta(timedelta(seconds=seconds))
        return await self.scheduler.stub.BanBackend(request)

    async def unban(self) -> Backend:
        request = pb.UnbanBackendRequest(name="backends/memory", request_id=str(uuid4()))
        return await self.scheduler.stub.UnbanBackend(request)

    async def backend(self) -> Backend:
        (one,) = (await self.scheduler.stub.ListBackends(pb.ListBackendsRequest())).backends
        return one

    async def until(self, status: "Backend.Status.ValueType", seconds: float = 20) -> Backend:
        async with asyncio.timeout(seconds):
            while (found := await self.backend()).status != status:
                await asyncio.sleep(0.02)
        return found

    async def waits_for_backend(self, job: Job) -> Job:
        async with asyncio.timeout(20):
            while (found := await self.scheduler.get(job.name)).status.reason != Reason.REASON_WAIT_BACKEND:
                await asyncio.sleep(0.02)
        return found

    async def tests(self) -> list[Job]:
        request = pb.ListJobsRequest(filter=f'owner = "{ROBOT}"', order_by="create_time")
        return list((await self.scheduler.stub.ListJobs(request)).jobs)


@pytest.fixture
async def desk(tmp_path: Path, settings: dict[str, Any], system: BatchSystem) -> AsyncIterator[Desk]:
    services = {"scheduler": FAST | settings}
    async with serve(memory_scheduler(system), state=tmp_path / "state", settings=services) as served:
        yield Desk(Scheduler(served), system)


async def test_banned_backend_gets_no_new_jobs_and_is_returned_to_by_itself(desk: Desk) -> None:
    banned = await desk.ban(seconds=1.5)
    assert banned.status == Backend.STATUS_BANNED
    assert (banned.closure.reason, bool(banned.closure.actor), banned.closure.HasField("end_time")) == (
        "SE down",
        True,
        True,
    )
    (job,) = await desk.scheduler.submit(shell("true"))
    waiting = await desk.waits_for_backend(job)
    assert waiting.status.message.startswith("memory is banned until ")
    assert waiting.status.message.endswith(": SE down")
    assert desk.system.submitted == []
    await desk.until(Backend.STATUS_PRODUCTION)
    await desk.scheduler.wait(job.name, [JobState.JOB_STATE_QUEUED])


async def test_ban_is_told_by_why_and_by_the_table(desk: Desk) -> None:
    await desk.ban()
    (job,) = await desk.scheduler.submit(shell("true"))
    await desk.waits_for_backend(job)
    explanation = await desk.scheduler.stub.ExplainJob(pb.ExplainJobRequest(name=job.name))
    assert any(line.startswith("memory excluded: banned by ") for line in explanation.details)
    (row,) = (await desk.backend()).resources
    assert (row.status, row.in_use, row.rank) == (Backend.STATUS_BANNED, False, 0.0)


async def test_ban_outlives_a_restart_and_ends_by_unban(
    tmp_path: Path, settings: dict[str, Any], system: BatchSystem
) -> None:
    services = {"scheduler": FAST | settings}
    async with serve(memory_scheduler(system), state=tmp_path / "state", settings=services) as served:
        await Desk(Scheduler(served), system).ban()
    async with serve(memory_scheduler(system), state=tmp_path / "state", settings=services) as served:
        desk = Desk(Scheduler(served), system)
        assert (await desk.backend()).status == Backend.STATUS_BANNED
        assert (await desk.unban()).status == Backend.STATUS_PRODUCTION
        (job,) = await desk.scheduler.submit(shell("true"))
        await desk.scheduler.wait(job.name, [JobState.JOB_STATE_QUEUED])


async def test_draining_backend_finishes_what_it_has(desk: Desk) -> None:
    (first,) = await desk.scheduler.submit(shell("true"))
    await desk.scheduler.wait(first.name, [JobState.JOB_STATE_QUEUED])
    request = pb.DrainBackendRequest(name="backends/memory", reason="new kernel", request_id=str(uuid4()))
    assert (await desk.scheduler.stub.DrainBackend(request)).status == Backend.STATUS_DRAINING
    (second,) = await desk.scheduler.submit(shell("true"))
    await desk.waits_for_backend(second)
    desk.system.end(desk.system.going[0])
    await desk.scheduler.wait(first.name, [JobState.JOB_STATE_SUCCEEDED])


async def test_unknown_backend_is_not_found_with_the_nearest(desk: Desk) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await desk.ban(name="backends/memry")
    assert error.value.code() == grpc.StatusCode.NOT_FOUND
    assert "there are: memory" in (error.value.details() or "")


async def test_ban_needs_a_reason_and_a_time_that_is_not_over(desk: Desk) -> None:
    for wrong in ({"reason": ""}, {"reason": "x", "duration": Duration(seconds=0)}):
        request = pb.BanBackendRequest(name="backends/memory", request_id=str(uuid4()), **wrong)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await desk.scheduler.stub.BanBackend(request)
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_wait_and_success_are_measured(desk: Desk) -> None:
    assert not (await desk.backend()).resources[0].HasField("response_time")
    (job,) = await desk.scheduler.submit(shell("true"))
    await desk.scheduler.wait(job.name, [JobState.JOB_STATE_QUEUED])
    desk.system.start(desk.system.going[0])
    await desk.scheduler.wait(job.name, [JobState.JOB_STATE_RUNNING])
    desk.system.end(desk.system.going[0])
    await desk.scheduler.wait(job.name)
    async with asyncio.timeout(10):
        while (found := await desk.backend()).success_sample != 1:
            await asyncio.sleep(0.02)
    (row,) = found.resources
    assert row.HasField("response_time")
    assert row.success_rate == pytest.approx(5.5 / 6)
    assert "(1 of 1 recent jobs)" in row.rank_why


@pytest.mark.parametrize("settings", [{"bans": {"refused": 3, "first_pause": 0.6}}])
async def test_backend_that_refuses_everything_is_banned_for_a_while(desk: Desk) -> None:
    desk.system.handover = Handover.REJECT
    await desk.scheduler.submit(shell("true"), shell("true"), shell("true"))
    banned = await desk.until(Backend.STATUS_BANNED)
    assert banned.closure.actor == ""
    assert "submissions went wrong in a row, the last one: not today" in banned.message
    desk.system.handover = Handover.ACCEPT
    await desk.until(Backend.STATUS_PRODUCTION)


@pytest.mark.parametrize(
    "settings", [{"bans": {"refused": 3, "first_pause": 0.3}, "test_jobs": {"every": 3600, "command": ["true"]}}]
)
async def test_banned_backend_is_tried_by_test_jobs_only_until_one_succeeds(desk: Desk) -> None:
    async with asyncio.timeout(20):
        while not desk.system.going:
            await asyncio.sleep(0.02)
    desk.system.end(desk.system.going[0])
    desk.system.handover = Handover.REJECT
    jobs = await desk.scheduler.submit(shell("true"), shell("true"), shell("true"))
    await desk.until(Backend.STATUS_BANNED)
    for job in jobs:
        # What was about to be handed over when the ban came is none of its business.
        await desk.waits_for_backend(job)
    before = len(desk.system.submitted)
    desk.system.handover = Handover.ACCEPT
    async with asyncio.timeout(20):
        while not desk.system.going:
            await asyncio.sleep(0.02)
    (token,) = desk.system.going
    tests = await desk.tests()
    assert desk.system.items[token].manifest["job"] in [test.name for test in tests]
    assert len(desk.system.submitted) == before + 1
    desk.system.end(token)
    await desk.until(Backend.STATUS_PRODUCTION)
    await desk.scheduler.wait(jobs[0].name, [JobState.JOB_STATE_QUEUED, JobState.JOB_STATE_FAILED])


@pytest.mark.parametrize("settings", [{"test_jobs": {"every": 0.2, "command": ["true"]}}])
async def test_test_jobs_come_again_and_again_and_count(desk: Desk) -> None:
    async with asyncio.timeout(30):
        while (await desk.backend()).success_sample < 2:
            for token in desk.system.going:
                desk.system.end(token)
            await asyncio.sleep(0.05)
    assert len(await desk.tests()) >= 2
