"""Recalls as the client asks for them."""

from pathlib import Path

import pytest

from khomas.api.catalog.v1 import catalog_service_pb2 as pb
from khomas.api.catalog.v1.catalog_service_pb2_grpc import CatalogServiceStub
from khomas.api.catalog.v1.file_pb2 import File, Replica
from khomas.api.common.v1.checksum_pb2 import Checksums
from khomas.api.storage.v1.storage_element_pb2 import StorageElement
from khomas.catalog.app import service as catalog
from khomas.client import AsyncClient, KhomasError
from khomas.kit.ids import new_uid
from khomas.kit.testing import serve
from khomas.storage.app import service as storage

# One more than a request can name.
MANY = 10_001


async def test_dataset_of_any_size_is_recalled_without_what_is_not_on_tape(tmp_path: Path) -> None:
    async with (
        serve(catalog, storage, state=tmp_path / "state") as served,
        AsyncClient(served.endpoint, served.token()) as client,
    ):
        (tmp_path / "tape").mkdir()
        element = StorageElement(name="storageElements/tape", media=StorageElement.MEDIA_TAPE)
        element.access_points.add(protocol="posix", address=str(tmp_path / "tape"))
        await client.storage.create_element(element)
        await client.catalog.create_dataset("raw")
        names = [f"/raw/{number}" for number in range(MANY)]
        files = [file(name, "tape") for name in names]
        for some in ([*files[:5000], file("/raw/on-disk", "local")], files[5000:]):
            request = pb.BatchCreateFilesRequest(files=some, datasets=["datasets/raw"], request_id=new_uid())
            await CatalogServiceStub(served.channel).BatchCreateFiles(request)

        results = await client.recalls.create(dataset="raw")

        assert sorted(result.recall.file for result in results) == sorted(names)
        with pytest.raises(KhomasError) as caught:
            await client.recalls.create(dataset="no")
    assert caught.value.reason == "DATASET_NOT_FOUND"


def file(name: str, element: str) -> File:
    """Describe a file that was imported."""
    replica = Replica(storage_element=element, path=name[1:])
    return File(name=name, size_bytes=1, checksums=Checksums(adler32="00010001"), replicas=[replica])
