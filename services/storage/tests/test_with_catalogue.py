"""The storage beside the real catalogue."""

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.catalog.v1 import dataset_pb2, file_pb2
from khomas.api.catalog.v1.catalog_service_pb2_grpc import CatalogServiceStub
from khomas.api.common.v1 import value_pb2
from khomas.api.storage.v1 import storage_element_pb2, transfer_pb2
from khomas.api.storage.v1 import storage_service_pb2 as pb
from khomas.api.storage.v1.storage_service_pb2_grpc import StorageServiceStub
from khomas.kit.boundary.status import info_of, reason_of, received_status
from khomas.kit.plugins import installed, load
from khomas.kit.testing import serve
from khomas.storage.app import service
from khomas.storage.deletions.deletions import Deletions
from khomas.storage.testing import MemoryCatalog, Storage, until


async def found(storage: Storage, *names: str) -> list[catalog_pb.FileResult]:
    request = catalog_pb.BatchGetFilesRequest(names=names, view=catalog_pb.FILE_VIEW_FULL)
    return list((await CatalogServiceStub(storage.served.channel).BatchGetFiles(request)).results)


async def test_file_has_all_that_was_committed_with_it(both: Storage) -> None:
    catalog = CatalogServiceStub(both.served.channel)
    key = dataset_pb2.MetadataKey(name="metadataKeys/zenith", type=dataset_pb2.MetadataKey.TYPE_NUMBER, unit="deg")
    await catalog.BatchCreateMetadataKeys(
        catalog_pb.BatchCreateMetadataKeysRequest(metadata_keys=[key], request_id=str(uuid4()))
    )
    dataset = dataset_pb2.Dataset(name="datasets/crab")
    await catalog.CreateDataset(catalog_pb.CreateDatasetRequest(dataset=dataset, request_id=str(uuid4())))
    await both.store("/hess/raw", b"raw")
    upload = await both.open(max_files=2)
    for index in (0, 1):
        await both.put(upload, b"reduced", index)

    zenith = {"zenith": value_pb2.Value(number=46.5)}
    await both.commit(
        both.wanted(upload, "/hess/a", b"reduced", 0, parents=["/hess/raw"], metadata=zenith),
        both.wanted(upload, "/hess/b", b"reduced", 1, datasets=["datasets/crab"]),
    )

    a, b = (result.file for result in await found(both, "/hess/a", "/hess/b"))
    assert (list(a.parents), a.metadata["zenith"].number) == (["/hess/raw"], 46.5)
    assert b.replicas[0].state == file_pb2.Replica.STATE_AVAILABLE
    assert b.replicas[0].HasField("verify_time")
    crab = await catalog.GetDataset(catalog_pb.GetDatasetRequest(name="datasets/crab"))
    assert crab.file_count == 1


def as_subject(storage: Storage, subject: str) -> Storage:
    return replace(storage, stub=StorageServiceStub(storage.served.channel_for("storage.create:/", subject=subject)))


async def test_file_belongs_to_who_put_it_first_and_leads_to_that_upload(both: Storage) -> None:
    upload = await both.open()
    await both.put(upload, b"bytes")
    (first,) = (await both.commit(both.wanted(upload, "/hess/file", b"bytes"))).files

    again = await as_subject(both, "mallory").store("/hess/file", b"bytes")

    (result,) = await found(both, "/hess/file")
    assert (result.file.owner, result.file.origin) == (upload.owner, upload.name.removeprefix("uploads/"))
    assert (upload.owner, again.uid, again.path) == ("tester", first.uid, first.path)


async def commit_for(owner: str, storage: Storage) -> None:
    upload = await storage.open()
    await storage.put(upload, b"bytes")
    wanted = storage.wanted(upload, "/hess/file", b"bytes")
    request = pb.BatchCommitUploadsRequest(files=[wanted], owner=owner, request_id=str(uuid4()))
    await storage.stub.BatchCommitUploads(request)


async def test_only_a_service_brings_files_in_for_somebody_else(both: Storage) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await commit_for("alice", as_subject(both, "bob"))
    assert reason_of(caught.value) == "OWNER_REFUSED"
    assert both.visible() == []

    await commit_for("alice", as_subject(both, "service:scheduler"))

    (result,) = await found(both, "/hess/file")
    assert result.file.owner == "alice"


async def test_undeclared_key_is_refused_by_the_catalogue_and_nothing_stays(both: Storage) -> None:
    upload = await both.open()
    await both.put(upload, b"bytes")
    wanted = both.wanted(upload, "/hess/file", b"bytes", metadata={"zenit": value_pb2.Value(number=1)})

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await both.commit(wanted)

    info = info_of(received_status(caught.value))
    assert (info.domain, info.reason) == ("khomas.catalog", "METADATA_KEY_UNDECLARED")
    assert both.visible() == []


async def test_copy_and_space_are_known_to_both(both: Storage, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    element = storage_element_pb2.StorageElement(name="storageElements/mirror")
    element.media = storage_element_pb2.StorageElement.MEDIA_DISK
    element.access_points.add(protocol="posix", address=str(mirror))
    await both.stub.CreateStorageElement(
        pb.CreateStorageElementRequest(storage_element=element, request_id=str(uuid4()))
    )
    await both.store("/hess/file", b"bytes")

    wanted = transfer_pb2.Transfer(file="/hess/file", destination="mirror")
    request = pb.BatchCreateTransfersRequest(transfers=[wanted], request_id=str(uuid4()))
    await both.stub.BatchCreateTransfers(request)

    async def counted() -> bool:
        request = pb.GetStorageElementRequest(name="storageElements/mirror")
        space = (await both.stub.GetStorageElement(request)).space
        return (space.used_bytes, space.file_count) == (5, 1)

    await until(counted)
    assert (mirror / "hess/file").read_bytes() == b"bytes"
    download = await both.download("/hess/file")
    assert [grant.storage_element for grant in download.grants] == ["local", "mirror"]


async def test_deletion_ends_with_a_tombstone_and_without_bytes(both: Storage) -> None:
    committed = await both.store("/hess/file", b"bytes")
    delete = catalog_pb.BatchDeleteFilesRequest(
        names=["/hess/file"], reason="test", undo_window=Duration(nanos=1_000_000), request_id=str(uuid4())
    )
    await CatalogServiceStub(both.served.channel).BatchDeleteFiles(delete)

    async def gone() -> bool:
        (result,) = await found(both, f"files/{committed.uid}")
        return result.file.state == file_pb2.File.STATE_DELETED

    await until(gone)
    assert both.visible() == []
    again = await both.store("/hess/file", b"other bytes")
    assert (again.path, again.uid != committed.uid) == ("hess/file", True)


async def test_deletions_that_were_confirmed_and_not_written_down_hold_up_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = load(installed("khomas.services")["catalog"])
    settings = {"storage": {"poll": 0.05, "lease": 1.0, "deletion_pause": 0.05}}
    settle = Deletions._settle
    died = asyncio.Event()

    async def dying(self: Deletions, results: Iterable[Any]) -> None:
        if died.is_set():
            await settle(self, results)
        died.set()

    monkeypatch.setattr(Deletions, "_settle", dying)
    async with (
        serve(catalog, service, state=tmp_path / "state", settings=settings) as served,
        aiohttp.ClientSession() as http,
    ):
        root = tmp_path / "state" / "storage" / "local"
        storage = Storage(served, StorageServiceStub(served.channel), MemoryCatalog(), http, root)
        stub = CatalogServiceStub(served.channel)

        async def delete(name: str) -> None:
            await storage.store(name, b"bytes")
            request = catalog_pb.BatchDeleteFilesRequest(
                names=[name], reason="not wanted", undo_window=Duration(), request_id=str(uuid4())
            )
            await stub.BatchDeleteFiles(request)

        await delete("/hess/first")
        await asyncio.wait_for(died.wait(), 60)
        await delete("/hess/second")

        async def confirmed() -> bool:
            deletions = (await storage.stub.ListDeletions(pb.ListDeletionsRequest())).deletions
            return [one.state for one in deletions] == [transfer_pb2.Deletion.STATE_CONFIRMED] * 2

        await until(confirmed)
    assert storage.visible() == []
