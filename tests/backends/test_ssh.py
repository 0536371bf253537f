"""A machine behind ssh: the conformance suite over a real sshd, and what is its own."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from khomas.api.scheduler.v1.state_pb2 import Reason
from khomas.kit.testing import serve
from khomas.scheduler.app import service
from khomas.scheduler.backends.commands import CommandFailedError
from khomas.scheduler.backends.interface import Backend, State, Submitted
from khomas.scheduler.backends.ssh import SshSettings, open_ssh
from khomas.scheduler.conformance import GRACE, BackendConformance, OpenBackend, job, shell
from khomas.scheduler.testing import Scheduler, states
from khomas.scheduler.testing import shell as shell_job
from tests.backends.conftest import shared_folder
from tests.testbeds.ssh import Ssh


@pytest.fixture
def tmp_path() -> Path:
    """A folder where the user of the host may leave marks."""
    folder = shared_folder("marks")
    folder.chmod(0o777)
    return folder


@pytest.fixture
def settings(ssh: Ssh, tmp_path: Path) -> SshSettings:
    return SshSettings(
        spool=tmp_path / "spool",
        ssh=ssh.address,
        ssh_key=ssh.key,
        ssh_known_hosts=ssh.known_hosts,
        poll_seconds=0.2,
        settle_seconds=1.0,
        command_seconds=10.0,
    )


@pytest.fixture
async def open_backend(settings: SshSettings) -> AsyncIterator[OpenBackend]:
    opened: list[Backend] = []

    def open_one() -> Backend:
        opened.append(open_ssh(settings))
        return opened[-1]

    yield open_one
    for backend in opened:
        await backend.aclose()


@pytest.mark.timeout(500)
class TestSsh(BackendConformance):
    """A host behind ssh keeps the contract."""

    patience_s = 60.0
    patience_of_thousand_s = 400.0

    async def test_job_outlives_the_connection(self, open_backend: OpenBackend) -> None:
        first = open_backend()
        [native_id] = await self.submitted(first, [shell("sleep 2; echo done")])
        await first.aclose()
        second = open_backend()
        assert (await self.ended(second, native_id)).state == State.SUCCEEDED
        await second.aclose()

    async def test_host_that_is_away_is_no_news_of_its_jobs(self, backend: Backend, ssh: Ssh) -> None:
        [native_id] = await self.submitted(backend, [shell("sleep 2; echo done")])
        await self.wait_for(backend, native_id, State.RUNNING)
        ssh.stop()
        try:
            with pytest.raises(CommandFailedError, match="ssh"):
                await backend.poll([native_id])
        finally:
            await asyncio.to_thread(ssh.start)
        assert (await self.ended(backend, native_id)).state == State.SUCCEEDED

    async def test_connection_that_breaks_in_a_submission_hands_nothing_over_twice(
        self, backend: Backend, ssh: Ssh, tmp_path: Path
    ) -> None:
        await self.run(backend, job("true"))
        items = [shell(f"echo {number} >> {tmp_path}/ran") for number in range(20)]
        first = asyncio.create_task(backend.submit(items))
        await asyncio.sleep(0.15)
        await asyncio.to_thread(ssh.stop)
        await asyncio.to_thread(ssh.start)
        with contextlib.suppress(CommandFailedError):
            await first
        outcomes = await backend.submit(items)
        assert {outcome.kind for outcome in outcomes} == {Submitted.ACCEPTED}
        for outcome in outcomes:
            assert (await self.ended(backend, outcome.native_id)).state == State.SUCCEEDED
        assert sorted(int(line) for line in (tmp_path / "ran").read_text().split()) == list(range(20))

    async def test_waiting_process_ends_when_its_job_is_cancelled(self, backend: Backend) -> None:
        ids = await self.submitted(backend, [job("sleep", "60") for _ in range(6)])
        await backend.cancel(ids, GRACE)
        assert {(await self.ended(backend, one)).state for one in ids} == {State.CANCELLED}


async def test_slow_job_is_ended_there_when_nobody_answers(settings: SshSettings, tmp_path: Path) -> None:
    options = {"spool": str(settings.spool), "ssh": settings.ssh, "poll_seconds": 0.2}
    options |= {"ssh_key": str(settings.ssh_key), "ssh_known_hosts": str(settings.ssh_known_hosts)}
    there = {"backends": {"there": {"kind": "ssh", "options": options}}, "usage_interval": 0.2, "poll": 0.05}
    policy = {"min_cpu_efficiency": 0.9, "efficiency_window": "2s", "slow_answer_time": "0.5s"}
    policy |= {"slow_action": "SLOW_ACTION_KILL"}
    async with serve(service, state=tmp_path / "state", settings={"scheduler": there}) as served:
        scheduler = Scheduler(served)
        [idle] = await scheduler.submit(shell_job("sleep 90", limits=policy))
        ended = await scheduler.wait(idle.name, seconds=60)
    assert (states([ended]), ended.status.reason) == (["FAILED"], Reason.REASON_LIMIT_SLOW)
