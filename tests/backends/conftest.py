"""Servers that several test files speak to, started once a session."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.testbeds import kubernetes, kubernetes_real
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


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kubernetes.Cluster | kubernetes_real.Cluster]:
    """A stand-in for a cluster, or the real one of `make test-kubernetes`; whoever stops it starts it again."""
    bed = kubernetes_real if os.environ.get("KHOMAS_TEST_KUBERNETES") == "real" else kubernetes
    with bed.running(tmp_path_factory.mktemp("kubernetes")) as running:
        yield running


def shared_folder(name: str) -> Path:
    """A folder that other users may enter; pytest closes its own to them whenever a session starts."""
    folder = Path(tempfile.mkdtemp(prefix=f"khomas-{name}-"))
    folder.chmod(0o755)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
