"""Attempts that keep away from where others failed."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest

from khomas.api.scheduler.v1.job_pb2 import Job
from khomas.api.scheduler.v1.job_spec_pb2 import JobSpec
from khomas.kit.service import Host, Running, Service
from khomas.kit.testing import serve
from khomas.scheduler.app import migrate, start_with
from khomas.scheduler.backends.interface import Capabilities
from khomas.scheduler.config import BackendSettings, SchedulerSettings
from khomas.scheduler.placement.sites import Site, Sites
from khomas.scheduler.testing import Scheduler, shell, states
from khomas.scheduler.testing.backend import BatchSystem

FAST = {"poll": 0.02, "initial_backoff": 0.02}
NODE_FAILURE = 402


class BlindSystem(BatchSystem):
    """One that cannot choose nodes."""

    capabilities: ClassVar[Capabilities] = replace(BatchSystem.capabilities, avoids_nodes=False)


@dataclass(slots=True)
class Desk:
    # The best one.
    bad: BatchSystem
    good: BatchSystem
    scheduler: Scheduler

    async def ended(self, spec: JobSpec) -> Job:
        """Run a job whose attempts fail at the best backend and succeed at the other one."""
        [job] = await self.scheduler.submit(spec)
        async with asyncio.timeout(20):
            while (found := await self.scheduler.get(job.name)).status.state < 20:
                for token in self.bad.going:
                    self.bad.end(token, NODE_FAILURE)
                for token in self.good.going:
                    self.good.end(token)
                await asyncio.sleep(0.02)
        return found


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    bad, good = BatchSystem(node="n7"), BlindSystem()

    async def start(settings: SchedulerSettings, host: Host) -> Running:
        best = Site("bad", BackendSettings(kind="memory", priority=2), bad)
        return await start_with(settings, host, Sites([best, Site("good", BackendSettings(kind="memory"), good)]))

    service = Service("scheduler", SchedulerSettings, start, migrate)
    async with serve(service, state=tmp_path / "state", settings={"scheduler": FAST}) as served:
        yield Desk(bad, good, Scheduler(served))


async def test_next_attempt_goes_to_another_backend_where_the_policy_says_so(desk: Desk) -> None:
    job = await desk.ended(shell("true", retry={"max_attempts": 3, "avoid_failed_backend": True}))
    assert ([one.backend for one in job.attempts], states([job])) == (["bad", "good"], ["SUCCEEDED"])
    same = await desk.ended(shell("true", retry={"max_attempts": 2}))
    assert ([one.backend for one in same.attempts], states([same])) == (["bad", "bad"], ["FAILED"])


async def test_next_attempt_stays_where_there_is_no_other_backend(desk: Desk) -> None:
    policy = {"max_attempts": 2, "avoid_failed_backend": True}
    job = await desk.ended(shell("true", retry=policy, placement={"backends": ["bad"]}))
    assert [one.backend for one in job.attempts] == ["bad", "bad"]


async def test_backend_is_told_of_the_nodes_where_a_job_failed(desk: Desk) -> None:
    policy = {"max_attempts": 2, "avoid_failed_nodes": True}
    await desk.ended(shell("true", retry=policy, placement={"backends": ["bad"]}))
    assert [list(desk.bad.items[token].avoid_nodes) for token in desk.bad.submitted] == [[], ["n7"]]


async def test_submission_warns_of_backends_that_cannot_choose_nodes(desk: Desk) -> None:
    policy = {"avoid_failed_nodes": True}
    asked = await desk.scheduler.answer(shell("true", retry=policy))
    assert asked.warnings == ["jobs[0]: good cannot avoid failed nodes."]
    there = await desk.scheduler.answer(shell("true", retry=policy, placement={"backends": ["bad"]}))
    assert not there.warnings
