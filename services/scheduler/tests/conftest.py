"""A scheduler with the local backend, and a catalogue and a storage in memory."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from khomas.kit.testing import serve
from khomas.kit.testing.postgresql import database_url, postgresql, postgresql_url
from khomas.scheduler.app import service
from khomas.scheduler.testing import Scheduler
from khomas.scheduler.testing.backend import BatchSystem, memory_scheduler
from khomas.scheduler.testing.files import Files, memory_services

__all__ = ["database_url", "postgresql", "postgresql_url"]

FAST = {"poll": 0.05, "initial_backoff": 0.05, "collect_after": 0.2, "find_pause": 0.1}


@pytest.fixture
def settings() -> dict[str, Any]:
    """Settings of the scheduler; tests override them."""
    return {}


@pytest.fixture
async def scheduler(tmp_path: Path, settings: dict[str, Any]) -> AsyncIterator[Scheduler]:
    async with serve(service, state=tmp_path / "state", settings={"scheduler": FAST | settings}) as served:
        yield Scheduler(served)


@pytest.fixture
def files() -> Files:
    """The files of the catalogue and the storage."""
    return Files()


@pytest.fixture
async def with_files(tmp_path: Path, settings: dict[str, Any], files: Files) -> AsyncIterator[Scheduler]:
    """A scheduler beside a catalogue and a storage."""
    services = (*memory_services(files), service)
    async with serve(*services, state=tmp_path / "state", settings={"scheduler": FAST | settings}) as served:
        yield Scheduler(served)


@pytest.fixture
def system() -> BatchSystem:
    """A batch system that does what the test says."""
    return BatchSystem()


@pytest.fixture
async def with_system(tmp_path: Path, settings: dict[str, Any], system: BatchSystem) -> AsyncIterator[Scheduler]:
    """A scheduler over that batch system."""
    services = {"scheduler": FAST | settings}
    async with serve(memory_scheduler(system), state=tmp_path / "state", settings=services) as served:
        yield Scheduler(served)
