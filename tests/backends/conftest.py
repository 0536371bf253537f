"""Servers that several test files speak to, started once a session."""

import atexit
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.testbeds import slurm as slurm_bed
from tests.testbeds import ssh as ssh_bed
from tests.testbeds.slurm import Slurm
from tests.testbeds.ssh import Ssh


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """Slurm with accounting and the REST server; whoever stops one of its servers starts it again."""
    with slurm_bed.running(shared_folder("slurm")) as running:
        yield running


@pytest.fixture(scope="session")
def ssh() -> Iterator[Ssh]:
    """A host that lets the unprivileged user in; whoever stops it starts it again."""
    with ssh_bed.running(shared_folder("ssh")) as running:
        yield running


def shared_folder(name: str) -> Path:
    """A folder that other users may enter; pytest closes its own to them whenever a session starts."""
    folder = Path(tempfile.mkdtemp(prefix=f"khomas-{name}-"))
    folder.chmod(0o755)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
