"""Slow jobs: seen by what they use, shown by cause, ended when nobody answers."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from khomas.api.common.v1.event_pb2 import WatchEventsRequest
from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.api.scheduler.v1.job_spec_pb2 import Limits
from khomas.api.scheduler.v1.slow_job_pb2 import SlowJob
from khomas.api.scheduler.v1.state_pb2 import JobState, Reason
from khomas.scheduler.answers.slow_jobs import over_estimate
from khomas.scheduler.backends.interface import Usage
from khomas.scheduler.engine.desk import Open
from khomas.scheduler.engine.observe import measured
from khomas.scheduler.lifecycle.slow import SlowPolicy, Window
from khomas.scheduler.records import Attempt
from khomas.scheduler.testing import Scheduler, shell, states
from khomas.scheduler.testing.backend import BatchSystem

IDLE = "sleep 30"
BUSY = "while :; do :; done"


def limits(action: str, **more: Any) -> dict[str, Any]:
    return {"min_cpu_efficiency": 0.5, "efficiency_window": "0.6s", "slow_action": f"SLOW_ACTION_{action}", **more}


@pytest.fixture
def settings() -> dict[str, Any]:
    return {"usage_interval": 0.2, "slow_after": 0.3, "poll": 0.05}


async def slow_jobs(scheduler: Scheduler, number: int = 1, seconds: float = 15) -> pb.ListSlowJobsResponse:
    async with asyncio.timeout(seconds):
        while len((found := await scheduler.stub.ListSlowJobs(pb.ListSlowJobsRequest())).jobs) < number:
            await asyncio.sleep(0.05)
    return found


@pytest.fixture
async def cancelling(scheduler: Scheduler) -> AsyncIterator[Scheduler]:
    """No job outlives its test."""
    yield scheduler
    jobs = (await scheduler.stub.ListJobs(pb.ListJobsRequest())).jobs
    await scheduler.cancel(*[job.name for job in jobs])
    for job in jobs:
        await scheduler.wait(job.name)


async def test_idle_job_is_shown_and_a_busy_one_is_not(cancelling: Scheduler) -> None:
    # However little of a crowded machine the busy one gets, it is more than this.
    modest = limits("FLAG") | {"min_cpu_efficiency": 0.001}
    idle, busy = await cancelling.submit(
        shell(IDLE, limits=limits("FLAG"), display_name="idle"), shell(BUSY, limits=modest)
    )
    found = await slow_jobs(cancelling)
    await cancelling.wait(busy.name, [JobState.JOB_STATE_RUNNING])
    [job] = found.jobs
    assert (job.job, job.cause, job.display_name) == (idle.name, SlowJob.CAUSE_LOW_EFFICIENCY, "idle")
    assert (job.backend, job.site) == ("local", "local")
    assert job.cpu_efficiency < 0.2
    assert "50.0% are wanted" in job.message
    [group] = found.groups
    assert (group.cause, group.owner, group.site, group.jobs) == (job.cause, job.owner, "local", 1)
    assert not job.HasField("kill_time")


async def test_slow_job_is_killed_when_nobody_answers(scheduler: Scheduler) -> None:
    spec = shell(IDLE, limits=limits("KILL", slow_answer_time="0.3s"))
    [ended] = await scheduler.run(spec)
    assert (states([ended]), ended.status.reason) == (["FAILED"], Reason.REASON_LIMIT_SLOW)
    assert "nobody answered" in ended.status.message
    assert [(one.state, one.reason) for one in ended.attempts] == [
        (JobState.JOB_STATE_FAILED, Reason.REASON_LIMIT_SLOW)
    ]
    events = [
        event
        async for batch in scheduler.stub.WatchEvents(
            WatchEventsRequest(until_now=True, filter='kind = "scheduler.job.slow"')
        )
        for event in batch.events
    ]
    told = SlowJob()
    assert [event.subject for event in events] == [ended.name]
    assert events[0].resource.Unpack(told)
    assert told.HasField("kill_time")


async def test_slow_job_runs_on_when_somebody_answers(scheduler: Scheduler) -> None:
    spec = shell("sleep 5", limits=limits("KILL", slow_answer_time="3s"))
    [job] = await scheduler.submit(spec)
    await slow_jobs(scheduler)
    request = pb.KeepSlowJobsRequest(names=[job.name], request_id=str(uuid4()))
    assert (await scheduler.stub.KeepSlowJobs(request)).kept == 1
    [kept] = (await slow_jobs(scheduler)).jobs
    assert kept.kept
    assert not kept.HasField("kill_time")
    assert states([await scheduler.wait(job.name)]) == ["SUCCEEDED"]


async def test_answer_for_a_job_that_is_not_slow_changes_nothing(cancelling: Scheduler) -> None:
    [job] = await cancelling.submit(shell(IDLE))
    answer = await cancelling.stub.KeepSlowJobs(pb.KeepSlowJobsRequest(names=[job.name], request_id=str(uuid4())))
    assert (answer.kept, answer.unchanged) == (0, 1)


async def test_ended_jobs_are_slow_no_more(scheduler: Scheduler, tmp_path: Path) -> None:
    [job] = await scheduler.submit(shell(f"until [ -e {tmp_path}/seen ]; do sleep 0.1; done", limits=limits("FLAG")))
    await slow_jobs(scheduler)
    (tmp_path / "seen").touch()
    await scheduler.wait(job.name)
    assert not (await scheduler.stub.ListSlowJobs(pb.ListSlowJobsRequest())).jobs


async def test_child_that_runs_much_longer_than_its_siblings_is_shown(
    with_system: Scheduler, system: BatchSystem
) -> None:
    [array] = await with_system.submit(shell("true", splitter={"count": {"count": 12}}))
    async with asyncio.timeout(10):
        while len(system.submitted) < 12:
            await asyncio.sleep(0.01)
    for token in system.submitted:
        system.start(token)
    await with_system.wait(f"{array.name}/0", [JobState.JOB_STATE_RUNNING])
    for token in system.submitted[1:]:
        system.end(token)
    found = await slow_jobs(with_system)
    assert [job.cause for job in found.jobs] == [SlowJob.CAUSE_OVER_ESTIMATE]
    assert "11 others of its array" in found.jobs[0].message


async def test_those_alone_are_measured_whose_specs_want_slow_jobs_found(
    with_system: Scheduler, system: BatchSystem
) -> None:
    await with_system.submit(shell("true"))
    [watched] = await with_system.submit(shell("true", limits=limits("FLAG", efficiency_window="1s")))
    async with asyncio.timeout(10):
        while len(system.submitted) < 2:
            await asyncio.sleep(0.01)
    for token in system.submitted:
        system.start(token)
    async with asyncio.timeout(10):
        while not (found := await with_system.stub.ListSlowJobs(pb.ListSlowJobsRequest())).jobs:
            system.live = {token: Usage(wall_s=time.monotonic()) for token in system.submitted}
            await asyncio.sleep(0.05)
    assert [job.job for job in found.jobs] == [watched.name]
    [other] = set(system.submitted) - {native_id[1:] for native_id in system.measured}
    assert system.items[other].manifest["job"] != watched.name


def test_of_a_crowd_some_are_measured_at_a_time_and_those_who_waited_longest_first() -> None:
    attempt = cast(Attempt, None)
    crowd = {f"n{number:04}": Open(attempt, 0.0, measure_at=5000.0 - number) for number in range(2500)}
    crowd["not yet"] = Open(attempt, 0.0, measure_at=6000.0)
    crowd["never"] = Open(attempt, 0.0)
    first = measured(crowd, 5000.0)
    assert (len(first), first[0], first[-1]) == (1000, "n2499", "n1500")


@pytest.mark.parametrize("watched", [True, False])
async def test_submission_warns_where_slow_jobs_cannot_be_found(
    with_system: Scheduler, system: BatchSystem, monkeypatch: pytest.MonkeyPatch, watched: bool
) -> None:
    spec = shell("true", limits=limits("KILL") if watched else {})
    assert not (await with_system.answer(spec)).warnings
    monkeypatch.setattr(BatchSystem, "capabilities", replace(system.capabilities, live_usage=False))
    said = list((await with_system.answer(shell("true"), spec)).warnings)
    assert said == (["jobs[1]: memory cannot tell what running jobs use: none is slow."] if watched else [])


async def test_stalled_job_is_shown_for_its_owner_alone(with_system: Scheduler, system: BatchSystem) -> None:
    [job] = await with_system.submit(shell("true"))
    await with_system.wait(job.name, [JobState.JOB_STATE_QUEUED])
    system.answers = False
    with_system.parts.desk.open[next(iter(with_system.parts.desk.open))].last_seen -= 1000
    found = await slow_jobs(with_system)
    assert [one.cause for one in found.jobs] == [SlowJob.CAUSE_STALLED]
    others = await with_system.stub.ListSlowJobs(pb.ListSlowJobsRequest(owner="nobody"))
    assert not others.jobs
    assert not others.groups


def policy(seconds: float = 100.0, cores: float = 1.0) -> SlowPolicy:
    return SlowPolicy(0.5, timedelta(seconds=seconds), cores, Limits.SLOW_ACTION_FLAG, timedelta(hours=1))


@given(
    rate=st.floats(0, 4),
    cores=st.integers(1, 8),
    steps=st.lists(st.floats(0.5, 30), min_size=40, max_size=80),
)
def test_steady_job_is_slow_exactly_when_its_rate_is_too_low(rate: float, cores: int, steps: list[float]) -> None:
    window, wall = Window(policy(cores=cores)), 0.0
    for step in steps:
        wall += step
        window.add(Usage(wall_s=wall, cpu_user_s=rate * wall))
    if window.efficiency is None:
        assert wall < 100 + 30 + steps[0]
    else:
        assert window.efficiency == pytest.approx(rate / cores, rel=1e-6, abs=1e-9)
    assert len(window.wall) <= 40


def test_job_is_not_judged_before_the_window_is_full() -> None:
    window = Window(policy())
    window.add(Usage(wall_s=1.0))
    window.add(Usage(wall_s=100.0))
    assert not window.slow
    window.add(Usage(wall_s=104.5))
    assert window.slow


def test_what_was_long_ago_does_not_count() -> None:
    window = Window(policy())
    for second in range(0, 500, 10):
        window.add(Usage(wall_s=second, cpu_user_s=min(second, 300)))
    assert window.slow


@pytest.mark.parametrize(("elapsed", "siblings", "over"), [(31, 10, True), (30, 10, False), (1000, 9, False)])
def test_siblings_say_what_is_usual(elapsed: int, siblings: int, over: bool) -> None:
    assert bool(over_estimate(timedelta(seconds=elapsed), [10.0] * siblings)) is over
