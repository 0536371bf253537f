"""The service may end at any moment: no job is lost, and none is handed over twice."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from khomas.api.scheduler.v1.state_pb2 import JobState
from khomas.kit.testing import serve
from khomas.scheduler.app import service
from khomas.scheduler.engine.dispatch import Dispatcher
from khomas.scheduler.store.leadership import LeadershipLost
from khomas.scheduler.testing import Scheduler, shell, states
from khomas.scheduler.testing.backend import BatchSystem, Handover, memory_scheduler

FAST = {"poll": 0.02, "initial_backoff": 0.02, "lease": 0.3, "find_pause": 0.1}


@contextlib.asynccontextmanager
async def running(system: BatchSystem, state: Path, url: str, *, engine: bool = True) -> AsyncIterator[Scheduler]:
    settings = {"scheduler": {**FAST, "engine": engine}}
    urls = {"scheduler": url}
    async with serve(memory_scheduler(system), state=state, settings=settings, database_urls=urls) as served:
        yield Scheduler(served)


@pytest.mark.parametrize("death", [None, Handover.DIES_BEFORE, Handover.DIES_AFTER, Handover.ACCEPT])
async def test_every_job_is_handed_over_exactly_once(tmp_path: Path, database_url: str, death: Handover | None) -> None:
    system = BatchSystem()
    async with running(system, tmp_path / "state", database_url, engine=False) as first:
        await first.parts.desk.leadership.acquire()
        [array, job] = await first.submit(shell("true", splitter={"count": {"count": 5}}), shell("true"))
        if death is not None:
            system.handover = death
            with contextlib.suppress(asyncio.CancelledError):
                await first.parts.engine.dispatcher.step()
    system.handover = Handover.ACCEPT
    async with running(system, tmp_path / "state", database_url) as second:
        async with asyncio.timeout(15):
            while len(system.records) < 6:
                for token in system.going:
                    system.end(token)
                await asyncio.sleep(0.01)
        assert states([await second.wait(array.name), await second.wait(job.name)]) == ["SUCCEEDED", "SUCCEEDED"]
        children = await second.children(array.name)
        assert [len(child.attempts) for child in children] == [1] * 5
    assert set(Counter(system.submitted).values()) == {1}


async def test_end_while_nobody_looked_is_noticed(tmp_path: Path, database_url: str) -> None:
    system = BatchSystem()
    async with running(system, tmp_path / "state", database_url) as first:
        [job] = await first.submit(shell("true"))
        await first.wait(job.name, [JobState.JOB_STATE_QUEUED])
    system.end(system.submitted[0])
    async with running(system, tmp_path / "state", database_url) as second:
        assert states([await second.wait(job.name)]) == ["SUCCEEDED"]


async def test_second_process_waits_until_the_first_one_is_gone(tmp_path: Path, database_url: str) -> None:
    system = BatchSystem()
    async with running(system, tmp_path / "one", database_url) as first:
        [job] = await first.submit(shell("true"))
        await first.wait(job.name, [JobState.JOB_STATE_QUEUED])
        async with running(system, tmp_path / "two", database_url) as second:
            await asyncio.sleep(0.5)
            assert second.parts.desk.open == {}
            [other] = await second.submit(shell("true"))
            await first.wait(other.name, [JobState.JOB_STATE_QUEUED])
    assert len(system.submitted) == 2


async def test_process_that_lost_its_right_writes_nothing(tmp_path: Path, database_url: str) -> None:
    system = BatchSystem()
    async with running(system, tmp_path / "one", database_url, engine=False) as first:
        await first.parts.desk.leadership.acquire()
        [job] = await first.submit(shell("true"))
        await asyncio.sleep(0.4)
        async with running(system, tmp_path / "two", database_url) as second:
            await second.wait(job.name, [JobState.JOB_STATE_QUEUED])
            late = Dispatcher(first.parts.desk)
            [another] = await first.submit(shell("true"))
            with pytest.raises(LeadershipLost):
                await first.parts.desk.leadership.renew()
            with contextlib.suppress(LeadershipLost):  # or the other one was faster, and nothing is due
                await late.step()
            await second.wait(another.name, [JobState.JOB_STATE_QUEUED])
    assert set(Counter(system.submitted).values()) == {1}


async def test_local_jobs_go_on_while_the_service_is_down(tmp_path: Path) -> None:
    settings = {"scheduler": FAST}
    async with serve(service, state=tmp_path / "state", settings=settings) as served:
        first = Scheduler(served)
        [array] = await first.submit(shell("sleep 0.2; echo {index}", splitter={"count": {"count": 6}}))
        await first.wait(
            array.name, [JobState.JOB_STATE_RUNNING, JobState.JOB_STATE_QUEUED, JobState.JOB_STATE_SUBMITTING]
        )
    await asyncio.sleep(0.3)
    async with serve(service, state=tmp_path / "state", settings=settings) as served:
        second = Scheduler(served)
        assert states([await second.wait(array.name)]) == ["SUCCEEDED"]
        children = await second.children(array.name)
        assert [await second.log(child.name) for child in children] == [f"{index}\n" for index in range(6)]
        assert {len(child.attempts) for child in children} == {1}


async def test_rejected_answer_is_not_lost_in_a_restart(tmp_path: Path, database_url: str) -> None:
    system = BatchSystem(handover=Handover.REJECT)
    async with running(system, tmp_path / "state", database_url) as first:
        [job] = await first.submit(shell("true", retry={"max_attempts": 1}))
        await first.wait(job.name)
    async with running(system, tmp_path / "state", database_url) as second:
        assert states([await second.get(job.name)]) == ["FAILED"]
