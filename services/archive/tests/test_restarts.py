"""A release is finished whatever happens in between."""

from pathlib import Path
from typing import Any

from khomas.api.archive.v1.archive_service_pb2 import ExplainReleaseRequest
from khomas.api.archive.v1.release_pb2 import Release
from khomas.api.catalog.v1.catalog_service_pb2 import ListFilesRequest
from khomas.api.common.v1.explanation_pb2 import Explanation
from khomas.api.storage.v1 import storage_service_pb2_grpc
from khomas.archive.app import service
from khomas.archive.testing import Archive, event_list, until
from khomas.catalog.app import service as catalog
from khomas.kit.config import ServiceSettings
from khomas.kit.errors import UpstreamUnavailable
from khomas.kit.service import Host, Running, Service
from khomas.kit.testing import serve
from khomas.storage.app import service as storage

DATASET = "datasets/hess/dl3"
NAME = "releases/crab/1"
# More than are made while a test looks.
RUNS = 60
SLOW = {"archive": {"poll": 0.02, "pause": 0.02, "batch_files": 1, "data_threads": 1}, "storage": {"poll": 0.05}}


async def stored_runs(archive: Archive, folder: Path) -> None:
    runs = {f"/hess/a_obs_id_{n}.fits.gz": event_list(folder / f"a_obs_id_{n}.fits.gz", n) for n in range(RUNS)}
    await archive.store(DATASET, runs)


async def copies(archive: Archive) -> list[str]:
    listed = await archive.catalog.ListFiles(ListFilesRequest(directory="/hess/releases"))
    return [file.name for file in listed.files]


async def test_restart_in_the_middle_ends_ready_without_a_file_twice(tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with serve(catalog, storage, service, state=state, settings=SLOW) as served:
        archive = Archive(served)
        await stored_runs(archive, tmp_path)
        await archive.create(NAME, DATASET)
        await until(lambda: copies(archive))
        made_before = await copies(archive)
        interrupted = await archive.get(NAME)
    async with serve(catalog, storage, service, state=state, settings=SLOW) as served:
        archive = Archive(served)
        release = await archive.settled(NAME)
        made = await copies(archive)
        placed = state / "storage" / "local" / "hess" / "releases"

        async def without_doubles() -> bool:
            return len([path for path in placed.rglob("*") if path.is_file()]) == RUNS

        # A commit that the end interrupted is finished by the storage, which drops what was committed again meanwhile.
        await until(without_doubles)

    assert interrupted.state == Release.STATE_PREPARING
    assert 0 < len(made_before) < RUNS
    assert (release.state, release.record_count) == (Release.STATE_READY, RUNS)
    assert len(made) == len({product.file for product in release.products}) == RUNS


async def explanation(archive: Archive) -> Explanation:
    return await archive.stub.ExplainRelease(ExplainReleaseRequest(name=NAME))


class _Away(storage_service_pb2_grpc.StorageServiceServicer):
    async def BatchCreateDownloads(self, request: Any, context: Any) -> Any:  # noqa: N802  the contract's name
        raise UpstreamUnavailable(service="disks")


async def _start_away(_: ServiceSettings, __: Host) -> Running:
    servicer = _Away()  # type: ignore[abstract]  # only what the archive calls first
    return Running(
        add_to=lambda server: storage_service_pb2_grpc.add_StorageServiceServicer_to_server(servicer, server)
    )


async def test_release_waits_for_a_storage_that_is_away(tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with serve(catalog, storage, service, state=state, settings=SLOW) as served:
        await stored_runs(Archive(served), tmp_path)
    away = Service("storage", ServiceSettings, _start_away)
    async with serve(catalog, away, service, state=state, settings=SLOW) as served:
        archive = Archive(served)
        await archive.create(NAME, DATASET)

        async def told() -> bool:
            return "does not answer" in (await explanation(archive)).summary

        await until(told)
        explained = await explanation(archive)
    async with serve(catalog, storage, service, state=state, settings=SLOW) as served:
        release = await Archive(served).settled(NAME)

    assert (explained.state, explained.reason) == ("PREPARING", "WAIT_RETRY")
    assert explained.remedies[0].who == "operator"
    assert release.state == Release.STATE_READY
