"""What every ARC CE must do: the suite of all backends, and what is special about ARC."""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from khomas.scheduler.backends.arc import open_arc
from khomas.scheduler.backends.arc.backend import ArcBackend
from khomas.scheduler.backends.arc.client import ArcClient, ArcRefusedError
from khomas.scheduler.backends.arc.description import descriptions
from khomas.scheduler.backends.arc.settings import ArcSettings
from khomas.scheduler.backends.commands import recording
from khomas.scheduler.backends.interface import Backend, Seen, State, SubmitItem, Submitted
from khomas.scheduler.conformance import GRACE, BackendConformance, job, shell, token
from tests.testbeds import arc as arc_bed
from tests.testbeds.arc import Arc


@contextmanager
def computing_element(version: int) -> Iterator[Arc]:
    """A CE in a folder that the user of its jobs may enter, which no folder of pytest's is for long."""
    with (
        tempfile.TemporaryDirectory(prefix=f"khomas-arc{version}-") as folder,
        arc_bed.running(Path(folder), version) as running,
    ):
        yield running


def settings(ce: Arc, **changes: object) -> ArcSettings:
    """The way to the CE as somebody whom it knows."""
    known: dict[str, object] = {"certificate": ce.certificate} if ce.version < 7 else {"token": ce.token}
    options = {"url": ce.url, "authorities": ce.authorities, "poll_interval_s": 0.05, **known, **changes}
    return ArcSettings(**options)  # type: ignore[arg-type]  # of the right types, from two dictionaries


class ArcSuite(BackendConformance):
    """Every job costs the CE seconds of a core for its own scripts, so there are fewer of them."""

    patience_s = 100.0
    many = 24
    patience_of_thousand_s = 240.0

    @pytest.fixture
    async def open_backend(self, ce: Arc) -> AsyncIterator[Callable[[], Backend]]:
        """Ways to the CE that are closed after the test."""
        opened: list[ArcBackend] = []

        def opening() -> Backend:
            opened.append(open_arc(settings(ce)))
            return opened[-1]

        yield opening
        for backend in opened:
            await backend.aclose()

    @pytest.fixture
    def tmp_path(self) -> Iterator[Path]:
        """A folder that the user of the jobs may write to."""
        with tempfile.TemporaryDirectory(prefix="khomas-arc-") as folder:
            Path(folder).chmod(0o777)
            yield Path(folder)

    # ------------------------------------------------------------------------------------------- what ARC does not do

    async def test_job_whose_answer_was_lost_never_runs_twice(self, ce: Arc, backend: Backend, tmp_path: Path) -> None:
        item = shell(f"echo ran >> {tmp_path}/ran")
        client = ArcClient(settings(ce))
        for _ in range(2):  # two calls whose answers nobody got
            await client.create(descriptions([item], settings(ce)))
        assert await backend.find([item.token]) == {}
        assert (await self.run(backend, item))["state"] == "SUCCEEDED"
        assert list(await backend.find([item.token])) == [item.token]
        assert (tmp_path / "ran").read_text() == "ran\n"
        left = [str(entry["id"]) for entry in await client.jobs(["ACCEPTING", "ACCEPTED", "PREPARING", "PREPARED"])]
        await client.act("kill", left)
        await client.aclose()

    @pytest.mark.timeout(300)
    async def test_many_jobs_are_accepted_with_one_call_and_cancelled(self, backend: Backend) -> None:
        items = [job("sleep", "60") for _ in range(200)]
        with recording() as calls:
            ids = await self.submitted(backend, items)
        assert len(set(ids)) == len(items)
        assert len([call for call in calls if call.argv[0] == "POST" and "action=new" in call.argv[1]]) == 1
        deadline = time.monotonic() + self.patience_of_thousand_s
        # As the scheduler does: a CE that is busy with some of them refuses those.
        while refused := [outcome for outcome in await backend.cancel(ids, GRACE) if not outcome.done]:
            assert time.monotonic() < deadline, refused
            await asyncio.sleep(1)
        while True:
            states = {one.state for one in (await backend.poll(ids)).observations}
            if states == {State.CANCELLED}:
                break
            assert time.monotonic() < deadline, states
            await asyncio.sleep(2)

    async def test_job_is_never_absent_while_the_ce_gets_on_with_it(self, backend: Backend) -> None:
        [native_id] = await self.submitted(backend, [job("sleep", "1")])
        deadline = time.monotonic() + self.patience_s
        while not (seen := await self.look(backend, native_id)).state.final:
            assert (seen.seen, time.monotonic() < deadline) == (Seen.PRESENT, True)

    async def test_unknown_queue_is_refused_by_the_ce(self, backend: Backend) -> None:
        item = SubmitItem(token(), {"command": ["true"]}, queue="no-such-queue")
        [outcome] = await backend.submit([item])
        assert outcome.kind == Submitted.REJECTED
        assert outcome.message

    async def test_options_of_the_wrong_kind_are_refused_by_name(self, backend: Backend) -> None:
        wrong = [("priority", "high"), ("priority", 101), ("runtime_environments", "ENV/X")]
        items = [SubmitItem(token(), {"command": ["true"]}, native={name: value}) for name, value in wrong]
        outcomes = await backend.submit(items)
        assert [outcome.kind for outcome in outcomes] == [Submitted.REJECTED] * 3
        assert [outcome.message.split()[0] for outcome in outcomes] == [name for name, _ in wrong]

    async def test_jobs_survive_servers_that_are_away(self, ce: Arc, backend: Backend) -> None:
        ids = await self.submitted(backend, [job("sleep", "1")])
        ce.stop_server("arex-ws")
        try:
            answer = await backend.poll(ids)
            assert (answer.complete, [one.seen for one in answer.observations]) == (False, [Seen.NOT_ANSWERED])
            with pytest.raises(Exception, match="vm"):
                await backend.submit([job("true")])
        finally:
            ce.start_server("arex-ws")
        assert (await self.ended(backend, ids[0])).state == State.SUCCEEDED

    async def refused(self, ce: Arc, backend: Backend, other: ArcSettings) -> None:
        """Nothing is done for who is not known, and everything says so."""
        [native_id] = await self.submitted(backend, [job("sleep", "2")])
        stranger = open_arc(other)
        item = job("true")
        for call in (
            lambda: stranger.submit([item]),
            lambda: stranger.poll([native_id]),
            lambda: stranger.cancel([native_id], timedelta()),
            lambda: stranger.find([item.token]),
        ):
            with pytest.raises(ArcRefusedError, match=r"renew|put|cannot be"):
                await call()
        await stranger.aclose()
        assert await backend.find([item.token]) == {}
        assert (await self.ended(backend, native_id)).state == State.SUCCEEDED
