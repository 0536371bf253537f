"""A running archive beside a real catalogue and a real storage, with simulated runs."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from khomas.archive.app import service
from khomas.archive.testing import Archive, event_list, event_rule
from khomas.catalog.app import service as catalog
from khomas.kit.testing import serve
from khomas.kit.testing.postgresql import database_url, postgresql, postgresql_url
from khomas.storage.app import service as storage

__all__ = ["database_url", "postgresql", "postgresql_url"]


@pytest.fixture
def settings() -> dict[str, Any]:
    """Settings of the archive; tests override them."""
    return {}


@pytest.fixture
async def archive(tmp_path: Path, settings: dict[str, Any]) -> AsyncIterator[Archive]:
    fast = {"archive": {"poll": 0.02, "pause": 0.05} | settings, "storage": {"poll": 0.05}}
    async with serve(catalog, storage, service, state=tmp_path / "state", settings=fast) as served:
        yield Archive(served)


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    """Give the event list of one run, gzipped, without checksums."""
    return event_list(tmp_path / "sim_obs_id_000042.fits.gz", run=42)


@pytest.fixture
async def ready(archive: Archive, tmp_path: Path) -> Archive:
    """Give an archive with a release of two runs, releases/crab/1."""
    files = {f"a_obs_id_{n}.fits.gz": event_list(tmp_path / f"a_obs_id_{n}.fits.gz", n) for n in (1, 2)}
    await archive.store("datasets/hess/dl3", {f"/hess/dl3/{name}": path for name, path in files.items()})
    await archive.create("releases/crab/1", "datasets/hess/dl3", event_rule(columns={"target_name": '"a < b & c"'}))
    await archive.settled("releases/crab/1")
    return archive
