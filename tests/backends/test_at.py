"""at: the conformance suite on a real atd, and what is its own."""

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from khomas.scheduler.backends.at import AtSettings, open_at
from khomas.scheduler.backends.interface import Backend, State
from khomas.scheduler.conformance import BackendConformance, OpenBackend, job, shell
from tests.backends.conftest import shared_folder
from tests.testbeds import at as at_bed
from tests.testbeds.at import At
from tests.testbeds.processes import until


@pytest.fixture(scope="module")
def at() -> Iterator[At]:
    with at_bed.running(shared_folder("at")) as running:
        yield running


@pytest.fixture
def settings(at: At, tmp_path: Path) -> AtSettings:
    return AtSettings(spool=tmp_path / "spool", prefix=at.prefix, poll_seconds=0.2, settle_seconds=1.0)


@pytest.fixture
def open_backend(settings: AtSettings) -> OpenBackend:
    return lambda: open_at(settings)


@pytest.mark.timeout(500)
class TestAt(BackendConformance):
    """at keeps the contract."""

    patience_s = 60.0
    patience_of_thousand_s = 400.0

    async def test_environment_of_the_service_is_not_kept_in_the_queue(
        self, backend: Backend, at: At, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("KHOMAS_SECRET_OF_THE_SERVICE", "hidden")
        await self.submitted(backend, [job("sleep", "0.5")])
        kept = [path.read_text(errors="replace") for path in (at.folder / "atjobs").iterdir() if path.is_file()]
        assert not [text for text in kept if "KHOMAS_SECRET" in text]

    async def test_daemon_that_is_down_keeps_jobs_waiting_and_none_is_lost(self, backend: Backend, at: At) -> None:
        at.stop()
        try:
            [native_id] = await self.submitted(backend, [shell("echo late")])
            assert (await self.look(backend, native_id)).state == State.QUEUED
        finally:
            at.start()
        # It looks at its queue once a minute when nobody wakes it.
        await self.run(backend, job("true"))
        assert (await self.ended(backend, native_id)).state == State.SUCCEEDED

    async def test_job_that_the_daemon_forgets_while_it_waits_for_a_slot_is_not_called_absent(
        self, backend: Backend, at: At, settings: AtSettings
    ) -> None:
        running = await self.submitted(backend, [job("sleep", "60") for _ in range(settings.slots)])
        for native_id in running:
            await self.wait_for(backend, native_id, State.RUNNING)
        item = shell("echo forgotten")
        [waiting] = await self.submitted(backend, [item])
        await asyncio.to_thread(until, (settings.spool / "batches" / item.token / "process").exists, 30, "its script")
        # What atd does itself on a busy machine, when a job is still being started a minute after it was due.
        [lock] = [path for path in (at.folder / "atjobs").glob("=*") if int(path.name[1:6], 16) == int(waiting)]
        lock.unlink()
        for _ in range(3):
            looks = [await self.look(backend, one) for one in (waiting, running[0])]
            assert [one.state for one in looks] == [State.QUEUED, State.RUNNING]
            await asyncio.sleep(settings.settle_seconds / 2)
        await backend.cancel(running, timedelta(seconds=1))
        assert (await self.ended(backend, waiting)).state == State.SUCCEEDED
