"""A storage that is killed in the middle of a commit or of copies finishes them when it is started again."""

import asyncio
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import aiohttp
import pytest
from google.protobuf.duration_pb2 import Duration

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.catalog.v1.catalog_service_pb2_grpc import CatalogServiceStub
from khomas.api.storage.v1 import grant_pb2, transfer_pb2
from khomas.api.storage.v1 import storage_service_pb2 as storage_pb
from khomas.api.storage.v1.storage_service_pb2_grpc import StorageServiceStub
from khomas.kit.plugins import installed, load
from khomas.kit.testing import serve
from khomas.storage.app import service
from khomas.storage.checksums import Algorithm
from khomas.storage.landing import digest
from khomas.storage.protocols.interface import Digest, StorageProtocol
from khomas.storage.testing import MemoryCatalog, Storage, until
from khomas.storage.transfers import moving


@pytest.mark.parametrize("step", ["record", "place", "create_files", "finish"])
async def test_commit_survives_sigkill_after(step: str, tmp_path: Path) -> None:
    script, request_id = Path(__file__).with_name("dies.py"), str(uuid4())
    process = await asyncio.create_subprocess_exec(sys.executable, script, tmp_path, request_id, step)
    assert await process.wait() == -signal.SIGKILL

    catalog = load(installed("khomas.services")["catalog"])
    settings = {"storage": {"poll": 0.05, "check_interval": 0.2}}
    async with (
        serve(catalog, service, state=tmp_path, settings=settings) as served,
        aiohttp.ClientSession() as http,
    ):
        root = tmp_path / "storage" / "local"
        storage = Storage(served, StorageServiceStub(served.channel), MemoryCatalog(), http, root)
        upload = grant_pb2.Upload(name=(tmp_path / "upload").read_text())

        async def committed() -> bool:
            return (await storage.uploads(upload))[0].state == grant_pb2.Upload.STATE_COMMITTED

        async def cleared() -> bool:
            return not list((root / ".khomas" / "uploads").iterdir())

        await until(committed)
        await until(cleared)
        wanted = storage.wanted(upload, "/hess/file", b"bytes")
        answer = (await storage.commit(wanted, request_id=request_id)).files[0]
        (found,) = (
            await CatalogServiceStub(served.channel).BatchGetFiles(
                catalog_pb.BatchGetFilesRequest(names=["/hess/file"], view=catalog_pb.FILE_VIEW_REPLICAS)
            )
        ).results

    assert (found.file.uid, found.file.replicas[0].path) == (answer.uid, "hess/file")
    assert storage.visible() == ["hess/file"]


async def killed_moving(state: Path, step: str) -> None:
    script = Path(__file__).with_name("dies_moving.py")
    process = await asyncio.create_subprocess_exec(sys.executable, script, state, step)
    assert await asyncio.wait_for(process.wait(), 120) == -signal.SIGKILL


@pytest.mark.parametrize("step", ["_copied", "note_paths", "_publish", "announced"])
async def test_copies_survive_sigkill_after(step: str, tmp_path: Path) -> None:
    await killed_moving(tmp_path, step)

    catalog = load(installed("khomas.services")["catalog"])
    async with serve(catalog, service, state=tmp_path, settings={"storage": {"poll": 0.05}}) as served:
        stub = StorageServiceStub(served.channel)

        async def done() -> bool:
            found = (await stub.ListTransfers(storage_pb.ListTransfersRequest())).transfers
            return len(found) > 0 and all(one.state == transfer_pb2.Transfer.STATE_SUCCEEDED for one in found)

        await until(done, 90)
        names = [f"/hess/{number}" for number in range(12)]
        request = catalog_pb.BatchGetFilesRequest(names=names, view=catalog_pb.FILE_VIEW_REPLICAS)
        results = (await CatalogServiceStub(served.channel).BatchGetFiles(request)).results

    copies = {
        result.file.name: replica.path
        for result in results
        for replica in result.file.replicas
        if replica.storage_element == "mirror"
    }
    assert copies == {name: name.removeprefix("/") for name in names}
    assert all((tmp_path / "mirror" / path).read_bytes() == name.encode() for name, path in copies.items())
    assert len(list((tmp_path / "mirror/hess").iterdir())) == 12


async def test_copy_of_a_file_that_was_deleted_meanwhile_is_removed_after_sigkill(tmp_path: Path) -> None:
    await killed_moving(tmp_path, "_publish")
    mirror = tmp_path / "mirror/hess"
    assert len(list(mirror.iterdir())) == 12
    # Not what was copied.
    (mirror / "1").write_bytes(b"somebody else's")

    catalog = load(installed("khomas.services")["catalog"])
    async with serve(catalog, state=tmp_path) as served:
        gone = catalog_pb.BatchDeleteFilesRequest(
            names=["/hess/0", "/hess/1"], reason="not wanted", undo_window=Duration(), request_id=str(uuid4())
        )
        await CatalogServiceStub(served.channel).BatchDeleteFiles(gone)
    settings = {"storage": {"poll": 0.05, "lease": 1.0}}
    async with serve(catalog, service, state=tmp_path, settings=settings) as served:
        stub = StorageServiceStub(served.channel)

        async def left() -> bool:
            found = (await stub.ListTransfers(storage_pb.ListTransfersRequest())).transfers
            ended = sorted(one.file for one in found if one.state == transfer_pb2.Transfer.STATE_FAILED)
            return ended == ["/hess/0", "/hess/1"] and not (mirror / "0").exists()

        await until(left, 60)
    assert sorted(one.name for one in mirror.iterdir()) == sorted(str(number) for number in range(1, 12))
    assert (mirror / "1").read_bytes() == b"somebody else's"


async def test_copy_that_is_read_wrongly_after_sigkill_is_still_the_only_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await killed_moving(tmp_path, "_publish")
    read: set[str] = set()

    async def flipping(protocol: StorageProtocol, path: str, known: Mapping[Algorithm, str]) -> Digest:
        found = await digest(protocol, path, known)
        if path in read:
            return found
        read.add(path)
        return replace(found, value="00000000")

    monkeypatch.setattr(moving, "digest", flipping)
    catalog = load(installed("khomas.services")["catalog"])
    async with serve(catalog, service, state=tmp_path, settings={"storage": {"poll": 0.05}}) as served:
        stub = StorageServiceStub(served.channel)

        async def done() -> bool:
            found = (await stub.ListTransfers(storage_pb.ListTransfersRequest())).transfers
            return len(found) == 12 and all(one.state == transfer_pb2.Transfer.STATE_SUCCEEDED for one in found)

        await until(done, 90)
    assert len(read) == 12
    assert sorted(one.name for one in (tmp_path / "mirror/hess").iterdir()) == sorted(map(str, range(12)))
