"""A running bookkeeping with a real catalogue and a scheduler whose jobs end when the test says so."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from pathlib import Path

import pytest

from khomas.api.catalog.v1.catalog_service_pb2_grpc import CatalogServiceStub
from khomas.bookkeeping.app import service
from khomas.bookkeeping.testing import Client, FakeScheduler, scheduler_service
from khomas.catalog.app import service as catalog_service
from khomas.kit.testing import Served, serve
from khomas.kit.testing.postgresql import database_url, postgresql, postgresql_url

__all__ = ["database_url", "postgresql", "postgresql_url"]

Start = Callable[[], AbstractAsyncContextManager[Served]]


@pytest.fixture
def scheduler() -> FakeScheduler:
    return FakeScheduler()  # type: ignore[abstract]  # only what bookkeeping calls


@pytest.fixture
def poll() -> timedelta:
    """How often productions are looked at when nothing happens."""
    return timedelta(milliseconds=50)


@pytest.fixture
def start(tmp_path: Path, database_url: str, scheduler: FakeScheduler, poll: timedelta) -> Start:
    """Start the same installation, as often as wanted."""
    return lambda: serve(
        catalog_service,
        scheduler_service(scheduler),
        service,
        state=tmp_path / "state",
        database_urls={"bookkeeping": database_url},
        settings={"bookkeeping": {"poll": poll}},
    )


@pytest.fixture
async def served(start: Start) -> AsyncIterator[Served]:
    async with start() as running:
        yield running


@pytest.fixture
def client(served: Served) -> Client:
    return Client(served.channel)


@pytest.fixture
def catalog(served: Served) -> CatalogServiceStub:
    return CatalogServiceStub(served.channel)
