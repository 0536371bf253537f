"""What the commands of PBS and LSF have in common, beyond the contract of backends."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from khomas.scheduler.backends.interface import Backend, Seen, State, SubmitItem, Submitted
from khomas.scheduler.conformance import GRACE, BackendConformance, job, shell, token


class EmulatedConformance(BackendConformance):
    """A batch system as emulated keeps the contract."""

    patience_s = 120.0
    patience_of_thousand_s = 400.0
    # What the system calls a job that is held.
    held: ClassVar[str]

    async def test_held_job_waits_until_it_is_released(self, backend: Backend) -> None:
        everything = {"cpu_milli": 16000}
        blocker, waiting = await self.submitted(
            backend, [job("sleep", "60", resources=everything), job("true", resources=everything)]
        )
        await self.wait_for(backend, blocker, State.RUNNING)
        assert [one.done for one in await backend.hold([waiting], True)] == [True]
        await backend.cancel([blocker], GRACE)
        await self.ended(backend, blocker)
        await asyncio.sleep(0.3)
        assert (await self.look(backend, waiting)).native_state == self.held
        await backend.hold([waiting], False)
        assert (await self.ended(backend, waiting)).state == State.SUCCEEDED

    async def test_unknown_queue_is_refused_and_leaves_nothing(self, backend: Backend) -> None:
        item = SubmitItem(token(), {"command": ["true"]}, queue="nosuch")
        [outcome] = await backend.submit([item])
        assert (outcome.kind, "queue" in outcome.message) == (Submitted.REJECTED, True)
        assert await backend.find([item.token]) == {}

    async def test_job_that_was_killed_without_record_is_told_by_the_history(self, backend: Backend) -> None:
        [native_id] = await self.submitted(backend, [shell("kill -9 $PPID")])
        seen = await self.ended(backend, native_id)
        assert (seen.state, seen.record) == (State.FAILED, None)


async def loses_nothing_while_its_server_is_away(
    open_backend: Callable[[], Backend], tools: Path, folder: Path, meanwhile: Submitted
) -> None:
    """Take the server away and bring it back; `meanwhile` is what a submission comes to without it."""
    backend = open_backend()
    [outcome] = await backend.submit([shell(f"while [ ! -e {folder}/go ]; do sleep 0.1; done")])
    (tools / "server").rename(tools / "away")
    answer = await backend.poll([outcome.native_id])
    assert (answer.complete, answer.observations[0].seen) == (False, Seen.NOT_ANSWERED)
    item = job("true")
    assert (await backend.submit([item]))[0].kind is meanwhile
    (tools / "away").rename(tools / "server")
    (folder / "go").touch()
    assert await backend.find([item.token]) == {}
    [again] = await backend.submit([item])
    assert again.kind is Submitted.ACCEPTED
    ids, deadline = [outcome.native_id, again.native_id], time.monotonic() + 60
    while {one.state for one in (await backend.poll(ids)).observations} != {State.SUCCEEDED}:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)
