"""A running catalogue, on SQLite and on PostgreSQL."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from khomas.api.catalog.v1.catalog_service_pb2_grpc import CatalogServiceStub
from khomas.catalog.app import service
from khomas.kit.testing import Served, serve
from khomas.kit.testing.postgresql import database_url, postgresql, postgresql_url

__all__ = ["database_url", "postgresql", "postgresql_url"]


@pytest.fixture
async def served(tmp_path: Path, database_url: str) -> AsyncIterator[Served]:
    async with serve(service, state=tmp_path / "state", database_urls={"catalog": database_url}) as running:
        yield running


@pytest.fixture
def catalog(served: Served) -> CatalogServiceStub:
    return CatalogServiceStub(served.channel)
