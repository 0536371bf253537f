"""Every policy's SQL on both databases, in one life of a small workflow."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.api.scheduler.v1.state_pb2 import JobState
from khomas.kit.testing import serve
from khomas.scheduler.backends.interface import Usage
from khomas.scheduler.testing import Scheduler, shell, states
from khomas.scheduler.testing.backend import BatchSystem, memory_scheduler

SETTINGS = {
    "poll": 0.05,
    "collect_after": 0.05,
    "usage_interval": 0.05,
    "slow_after": 0.0,
    "retain": 3600.0,
    "retain_sandboxes": 0.1,
    "retention_pause": 0.05,
    "shares": {"hess/mc": {"max_running": 4, "max_queued": 100, "max_cpu_per_day": 1000.0}, "daq": {"reserved": 0.1}},
    "default_share": "hess/mc",
}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def slow(window: float) -> dict[str, object]:
    action = "SLOW_ACTION_KILL"
    return {"min_cpu_efficiency": 0.5, "efficiency_window": f"{window}s", "slow_action": action}


async def test_life_of_a_workflow_under_all_policies(tmp_path: Path, database_url: str) -> None:
    system = BatchSystem()
    async with serve(
        memory_scheduler(system),
        state=tmp_path / "state",
        settings={"scheduler": SETTINGS},
        database_urls={"scheduler": database_url},
    ) as served:
        scheduler = Scheduler(served)
        stub = scheduler.stub
        spec = shell("{index}", splitter={"count": {"count": 3}}, limits=slow(10), retain_after_end="5s")
        [array] = await scheduler.submit(spec)
        [last] = await scheduler.submit(shell("last", dependencies=[{"job": array.name}], retain_after_end="5s"))
        await until(lambda: len(system.going) == 3)

        # Slow, and answered for.
        lazy = system.going[0]
        system.start(lazy)
        wall = 0.0
        async with asyncio.timeout(20):
            while not (found := await stub.ListSlowJobs(pb.ListSlowJobsRequest())).jobs:
                wall += 1.0
                system.live[lazy] = Usage(wall_s=wall)
                await asyncio.sleep(0.02)
        name = found.jobs[0].job
        keep = pb.KeepSlowJobsRequest(names=[name], request_id=str(uuid4()))
        assert (await stub.KeepSlowJobs(keep)).kept == 1

        # One fails, and the rest goes on behind what takes its place.
        for token in system.going:
            system.end(token, 200 if token == lazy else 0, exit_code=1, usage={"cpu_user_s": 30.0})
        await scheduler.wait(last.name)
        retry = pb.RetryJobsRequest(names=[last.name], workflow=True, request_id=str(uuid4()))
        rescued = (await stub.RetryJobs(retry)).jobs
        assert [job.origin for job in rescued] == [array.uid, last.uid]
        for _ in rescued:
            await until(lambda: bool(system.going))
            for token in system.going:
                system.end(token)
            await asyncio.sleep(0.1)
        async with asyncio.timeout(20):
            while (await stub.ListJobs(pb.ListJobsRequest())).jobs:
                await asyncio.sleep(0.05)  # all of them are over and forgotten

        shares = {one.name: one for one in (await stub.ListShares(pb.ListSharesRequest())).shares}
        assert shares["hess/mc"].cpu_used_last_day.seconds == 90
        assert not (await stub.ListSlowJobs(pb.ListSlowJobsRequest())).jobs


async def test_fresh_jobs_are_kept_for_the_time_of_the_service(tmp_path: Path, database_url: str) -> None:
    system = BatchSystem()
    async with serve(
        memory_scheduler(system),
        state=tmp_path / "state",
        settings={"scheduler": SETTINGS},
        database_urls={"scheduler": database_url},
    ) as served:
        scheduler = Scheduler(served)
        [job] = await scheduler.submit(shell("true"))
        await until(lambda: bool(system.going))
        system.end(system.going[0])
        assert states([await scheduler.wait(job.name, [JobState.JOB_STATE_SUCCEEDED])]) == ["SUCCEEDED"]
        await asyncio.sleep(0.3)
        assert (await scheduler.get(job.name)).uid == job.uid


async def test_end_of_children_that_were_never_made_reaches_who_waits(tmp_path: Path, database_url: str) -> None:
    services = memory_scheduler(BatchSystem())
    async with serve(services, state=tmp_path / "state", database_urls={"scheduler": database_url}) as served:
        scheduler = Scheduler(served)
        later = {"start_after": "2100-01-01T00:00:00Z"}
        [array] = await scheduler.submit(shell("true", splitter={"count": {"count": 9}}, limits=later))
        [waiting] = await scheduler.submit(shell("true", dependencies=[{"job": f"{array.name}/7"}]))
        await scheduler.cancel(array.name)
        assert states([await scheduler.wait(waiting.name)]) == ["FAILED"]
