"""Whose turn it is: nobody who cannot start keeps others from starting."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from khomas.api.scheduler.v1.state_pb2 import JobState
from khomas.kit.testing import serve
from khomas.scheduler.testing import Scheduler, shell, states
from khomas.scheduler.testing.backend import BatchSystem, memory_scheduler

FAST = {"poll": 0.05, "initial_backoff": 0.05, "collect_after": 0.2, "find_pause": 0.1}
QUEUED = (JobState.JOB_STATE_QUEUED,)


@contextlib.asynccontextmanager
async def running(
    folder: Path, url: str, system: BatchSystem, max_jobs: int, **settings: Any
) -> AsyncIterator[Scheduler]:
    """A scheduler over a backend of few slots."""
    made = memory_scheduler(system, max_jobs)
    urls = {"scheduler": url} if url else {}
    async with serve(made, state=folder, settings={"scheduler": FAST | settings}, database_urls=urls) as served:
        yield Scheduler(served)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


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
