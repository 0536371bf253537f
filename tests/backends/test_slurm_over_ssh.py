"""Slurm on a submit host behind ssh: the conformance suite over a real sshd."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from khomas.scheduler.backends.commands import recording
from khomas.scheduler.backends.interface import Backend
from khomas.scheduler.backends.slurm import SlurmSettings, open_slurm
from khomas.scheduler.conformance import BackendConformance, OpenBackend, job
from tests.backends.conftest import shared_folder
from tests.testbeds.slurm import Slurm
from tests.testbeds.ssh import Ssh


@pytest.fixture
def tmp_path() -> Path:
    """A folder where the user of the host may leave marks."""
    folder = shared_folder("marks")
    folder.chmod(0o777)
    return folder


@pytest.fixture
def settings(slurm: Slurm, ssh: Ssh, tmp_path: Path) -> SlurmSettings:
    return SlurmSettings(
        spool=tmp_path / "spool",
        env=slurm.environment,
        ssh=ssh.address,
        ssh_key=ssh.key,
        ssh_known_hosts=ssh.known_hosts,
        poll_seconds=0.2,
        settle_seconds=1.0,
        pilots=0,
    )


@pytest.fixture
async def open_backend(settings: SlurmSettings) -> AsyncIterator[OpenBackend]:
    opened: list[Backend] = []

    def open_one() -> Backend:
        opened.append(open_slurm(settings))
        return opened[-1]

    yield open_one
    for backend in opened:
        await backend.aclose()


@pytest.mark.timeout(500)
class TestSlurmOverSsh(BackendConformance):
    """Slurm behind ssh keeps the contract."""

    patience_s = 60.0
    patience_of_thousand_s = 400.0

    async def test_commands_of_the_submit_host_are_told(self, backend: Backend) -> None:
        with recording() as commands:
            ids = await self.submitted(backend, [job("true") for _ in range(3)])
        assert [(command.argv[0], command.exit_code) for command in commands] == [("sbatch", 0)]
        for one in ids:
            await self.ended(backend, one)
