"""at: the conformance suite on a real atd, and what is its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from khomas.scheduler.backends.at import AtSettings, open_at
from khomas.scheduler.backends.interface import Backend, State
from khomas.scheduler.conformance import BackendConformance, OpenBackend, job, shell
from tests.backends.conftest import shared_folder
from tests.testbeds import at as at_bed
from tests.testbeds.at import At


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
