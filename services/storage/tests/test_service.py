"""What holds for every rpc and table."""

from pathlib import Path
from uuid import uuid4

from google.protobuf import descriptor_pool

from khomas.api.storage.v1 import grant_pb2, transfer_pb2
from khomas.api.storage.v1 import storage_service_pb2 as pb
from khomas.api.storage.v1.storage_service_pb2_grpc import StorageServiceStub
from khomas.kit.boundary.status import unregistered_reasons
from khomas.kit.database.migrations import differences
from khomas.kit.testing import serve
from khomas.kit.testing.auth import assert_methods_declare_access, assert_refuses_bad_tokens
from khomas.storage.app import migrate, open_database, service
from khomas.storage.testing import MemoryCatalog, Storage, memory_catalog, until

SERVICE = descriptor_pool.Default().FindServiceByName("khomas.api.storage.v1.StorageService")


def test_every_rpc_declares_its_capability() -> None:
    assert_methods_declare_access(SERVICE)


async def test_every_rpc_refuses_bad_tokens(storage: Storage) -> None:
    await assert_refuses_bad_tokens(storage.served, SERVICE)


def test_every_reason_is_registered() -> None:
    assert unregistered_reasons("storage") == []


async def test_tables_are_those_of_the_migrations(database_url: str) -> None:
    await migrate(database_url)
    database = open_database(database_url)

    assert await differences(database) == []

    await database.close()


async def test_whole_way_of_a_file_on_postgresql(postgresql_url: str, tmp_path: Path) -> None:
    catalog = MemoryCatalog()
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    settings = {"storage": {"poll": 0.05}}
    urls = {"storage": postgresql_url}
    async with serve(
        memory_catalog(catalog), service, state=tmp_path / "state", settings=settings, database_urls=urls
    ) as served:
        stub = StorageServiceStub(served.channel)
        uploads = (
            await stub.BatchCreateUploads(
                pb.BatchCreateUploadsRequest(uploads=[grant_pb2.Upload()] * 3, request_id=str(uuid4()))
            )
        ).uploads
        for upload in uploads:
            Path(upload.grant.local_path, "0").write_bytes(b"bytes")  # noqa: ASYNC240  a test may block
        files = [Storage.wanted(upload, f"/hess/{n}", b"bytes") for n, upload in enumerate(uploads)]
        await stub.BatchCommitUploads(pb.BatchCommitUploadsRequest(files=files, request_id=str(uuid4())))
        element = await stub.GetStorageElement(pb.GetStorageElementRequest(name="storageElements/local"))
        element.name, element.access_points[0].address = "storageElements/mirror", str(mirror)
        await stub.CreateStorageElement(
            pb.CreateStorageElementRequest(storage_element=element, request_id=str(uuid4()))
        )
        wanted = [transfer_pb2.Transfer(file=file.name, destination="mirror") for file in files]
        await stub.BatchCreateTransfers(pb.BatchCreateTransfersRequest(transfers=wanted, request_id=str(uuid4())))

        async def copied() -> bool:
            done = await stub.ListTransfers(pb.ListTransfersRequest(filter="state = SUCCEEDED"))
            return len(done.transfers) == 3

        async def gone() -> bool:
            return not catalog.files

        await until(copied)
        for file in files:
            catalog.delete(file.name)
        await until(gone)
        assert not [path for path in mirror.rglob("*") if path.is_file()]
