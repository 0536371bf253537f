"""What holds for every rpc and table."""

from pathlib import Path

from google.protobuf import descriptor_pool

from khomas.api.archive.v1.release_pb2 import MappingRule, Release
from khomas.archive.app import migrate, open_database, service
from khomas.archive.testing import Archive
from khomas.catalog.app import service as catalog
from khomas.kit.boundary.status import unregistered_reasons
from khomas.kit.database import count_statements
from khomas.kit.database.migrations import differences
from khomas.kit.testing import serve
from khomas.kit.testing.auth import assert_methods_declare_access, assert_refuses_bad_tokens
from khomas.storage.app import service as storage

SERVICE = descriptor_pool.Default().FindServiceByName("khomas.api.archive.v1.ArchiveService")
DATASET = "datasets/hess/results"
NAME = "releases/crab/1"


def test_every_rpc_declares_its_capability() -> None:
    assert_methods_declare_access(SERVICE)


async def test_every_rpc_refuses_bad_tokens(archive: Archive) -> None:
    await assert_refuses_bad_tokens(archive.served, SERVICE)


def test_every_reason_is_registered() -> None:
    assert unregistered_reasons("archive") == []


async def test_tables_are_those_of_the_migrations(database_url: str) -> None:
    await migrate(database_url)
    database = open_database(database_url)

    assert await differences(database) == []

    await database.close()


async def released(archive: Archive, folder: Path, count: int) -> None:
    """Release small results that need no reading."""
    files = {}
    for number in range(count):
        path = folder / f"{number}.json"
        path.write_text(str(number))
        files[f"/hess/results/{path.name}"] = path
    await archive.store(DATASET, files)
    await archive.create(NAME, DATASET, MappingRule(match="*.json", columns={"calib_level": "4"}))
    release = await archive.settled(NAME)
    assert (release.state, release.record_count) == (Release.STATE_READY, count)


async def test_thousand_products_cost_few_statements(archive: Archive, tmp_path: Path) -> None:
    database = archive.served.services["archive"].parts.database
    with count_statements(database) as making:
        await released(archive, tmp_path, 1000)
    with count_statements(database) as reading:
        release = await archive.get(NAME)
    with count_statements(database) as streaming:
        records = await archive.records(NAME)

    assert len(release.products) == len(records) == 1000
    assert [statement for statement in making if "INSERT INTO record" in statement] != []
    assert len([statement for statement in making if statement.startswith("INSERT")]) <= 6
    assert len([statement for statement in reading if "product" in statement]) == 1
    assert len([statement for statement in streaming if "FROM record" in statement]) <= 2


async def test_release_on_postgresql(postgresql_url: str, tmp_path: Path) -> None:
    async with serve(
        catalog,
        storage,
        service,
        state=tmp_path / "state",
        settings={"archive": {"poll": 0.02}},
        database_urls={"archive": postgresql_url},
    ) as served:
        archive = Archive(served)
        await released(archive, tmp_path, 3)
        await archive.publish(NAME)
        await archive.export(NAME, "obscore")

        assert [record.obs_id for record in await archive.records(NAME)] == ["0.json", "1.json", "2.json"]
        assert len((await archive.get(NAME)).exports) == 1
