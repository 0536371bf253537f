"""A running bookkeeping with a real catalogue and a scheduler whose jobs end when the test says so."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from khomas.api.bookkeeping.v1.bookkeeping_service_pb2_grpc import BookkeepingServiceStub
from khomas.api.catalog.v1.catalog_service_pb2_grpc import CatalogServiceStub
from khomas.bookkeeping.app import service
from khomas.bookkeeping.testing import FakeScheduler, scheduler_service
from khomas.catalog.app import service as catalog_service
from khomas.kit.testing import Served, serve
from khomas.kit.testing.postgresql import database_url, postgresql, postgresql_url

__all__ = ["database_url", "postgresql", "postgresql_url"]

Until = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]
_PATIENCE = 20.0


@pytest.fixture
def scheduler() -> FakeScheduler:
    return FakeScheduler()


@pytest.fixture
async def served(tmp_path: Path, database_url: str, scheduler: FakeScheduler) -> AsyncIterator[Served]:
    async with serve(
        catalog_service,
        scheduler_service(scheduler),
        service,
        state=tmp_path / "state",
        database_urls={"bookkeeping": database_url},
        settings={"bookkeeping": {"poll": timedelta(milliseconds=50)}},
    ) as running:
        yield running


@pytest.fixture
def bookkeeping(served: Served) -> BookkeepingServiceStub:
    return BookkeepingServiceStub(served.channel)


@pytest.fixture
def catalog(served: Served) -> CatalogServiceStub:
    return CatalogServiceStub(served.channel)


@pytest.fixture
def until() -> Until:
    async def wait(look: Callable[[], Awaitable[Any]]) -> Any:
        async with asyncio.timeout(_PATIENCE):
            while not (seen := await look()):
                await asyncio.sleep(0.02)
            return seen

    return wait
