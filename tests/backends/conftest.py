"""Servers that several test files speak to, started once a session."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.testbeds import slurm as slurm_bed
from tests.testbeds import ssh as ssh_bed
from tests.testbeds.slurm import Slurm
from tests.testbeds.ssh import Ssh


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """Slurm with accounting and the REST server; whoever stops one of its servers starts it again."""
    with slurm_bed.running(shared_folder(tmp_path_factory, "slurm")) as running:
        yield running


@pytest.fixture(scope="session")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ssh]:
    """A host that lets the unprivileged user in; whoever stops it starts it again."""
    with ssh_bed.running(shared_folder(tmp_path_factory, "ssh")) as running:
        yield running


def shared_folder(factory: pytest.TempPathFactory, name: str) -> Path:
    """A folder that other users may enter."""
    folder = factory.mktemp(name)
    for path in (folder, folder.parent, folder.parent.parent):
        path.chmod(0o755)
    return folder
