"""A storage with a catalogue in memory."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from khomas.api.storage.v1 import storage_element_pb2
from khomas.api.storage.v1.storage_service_pb2_grpc import StorageServiceStub
from khomas.kit.database import Database
from khomas.kit.plugins import installed, load
from khomas.kit.testing import serve
from khomas.kit.testing.postgresql import database_url, postgresql, postgresql_url
from khomas.storage.app import migrate, open_database, service
from khomas.storage.reconciling.testing import Place, damageable
from khomas.storage.testing import MemoryCatalog, Storage, memory_catalog

__all__ = ["database_url", "postgresql", "postgresql_url"]


@pytest.fixture
def catalog() -> MemoryCatalog:
    return MemoryCatalog()


@pytest.fixture
def settings() -> dict[str, Any]:
    """Settings of the storage; tests override them."""
    return {}


@pytest.fixture
async def storage(tmp_path: Path, catalog: MemoryCatalog, settings: dict[str, Any]) -> AsyncIterator[Storage]:
    fast = {"poll": 0.05, "transfer_pause": 0.05, "deletion_pause": 0.05, "catalog_deadline": 0.7}
    async with (
        serve(
            memory_catalog(catalog), service, state=tmp_path / "state", settings={"storage": fast | settings}
        ) as served,
        aiohttp.ClientSession() as http,
    ):
        root = tmp_path / "state" / "storage" / "local"
        yield Storage(served, StorageServiceStub(served.channel), catalog, http, root)


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[Storage]:
    """Run the storage with the catalogue that is installed beside it; `catalog` of the answer is not used."""
    catalog = load(installed("khomas.services")["catalog"])
    settings = {"storage": {"poll": 0.05, "transfer_pause": 0.05}}
    async with (
        serve(catalog, service, state=tmp_path / "state", settings=settings) as served,
        aiohttp.ClientSession() as http,
    ):
        root = tmp_path / "state" / "storage" / "local"
        yield Storage(served, StorageServiceStub(served.channel), MemoryCatalog(), http, root)


@pytest.fixture
def place_url(request: pytest.FixtureRequest) -> str:
    """Give the database of `place`: SQLite in its folder, or by parameter PostgreSQL."""
    if getattr(request, "param", "sqlite") == "sqlite":
        return ""
    return str(request.getfixturevalue("postgresql_url"))


@pytest.fixture
async def place(tmp_path: Path, place_url: str, settings: dict[str, Any]) -> AsyncIterator[Place]:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    point = storage_element_pb2.AccessPoint(protocol="posix", address=str(mirror))
    async with damageable(tmp_path, mirror, point, database_url=place_url, settings=settings) as made:
        yield made


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """Give the storage's database, of each kind in turn, to tests of what goes on in it."""
    await migrate(database_url)
    database = open_database(database_url)
    yield database
    await database.close()


@pytest.fixture
def fits_file() -> bytes:
    """Give a small FITS file with a table that has a name."""
    from io import BytesIO

    from astropy.io import fits

    columns = [fits.Column("ENERGY", "E", "TeV", array=[1.0, 2.5, 3.25])]
    table = fits.BinTableHDU.from_columns(columns, name="EVENTS")
    table.header["RA_PNT"], table.header["OBJECT"] = 83.63, "Crab's nebula"
    table.header["OBS_ID"], table.header["DEADC"] = 23523, True
    file = BytesIO()
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(file)
    return file.getvalue()
