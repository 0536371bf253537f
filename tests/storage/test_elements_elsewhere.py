"""StorageElements on servers: copies there, back, from server to server, and reading through the door."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import grpc
import pytest

from khomas.api.storage.v1 import storage_element_pb2, transfer_pb2
from khomas.api.storage.v1 import storage_service_pb2 as pb
from khomas.api.storage.v1.storage_service_pb2_grpc import StorageServiceStub
from khomas.kit.boundary.status import reason_of
from khomas.kit.testing import serve
from khomas.storage.app import service
from khomas.storage.testing import MemoryCatalog, Storage, memory_catalog, until
from tests.testbeds.web import WebServer
from tests.testbeds.xrootd import Xrootd

DATA = b"0123456789" * 300_000
Transfer = transfer_pb2.Transfer


@dataclass(frozen=True, slots=True)
class Grid:
    """A storage service with elements on two servers."""

    storage: Storage
    folders: dict[str, Path]

    async def copied(self, name: str, source: str, destination: str) -> Transfer:
        """Copy a file, and wait for the end."""
        wanted = Transfer(file=name, sources=[source], destination=destination)
        request = pb.BatchCreateTransfersRequest(transfers=[wanted], request_id=str(uuid4()))
        (result,) = (await self.storage.stub.BatchCreateTransfers(request)).results

        async def final() -> bool:
            return (await self._get(result.transfer.name)).state >= Transfer.STATE_SUCCEEDED

        await until(final, 60)
        return await self._get(result.transfer.name)

    async def _get(self, name: str) -> Transfer:
        return await self.storage.stub.GetTransfer(pb.GetTransferRequest(name=name))

    def only_on(self, name: str, element: str) -> None:
        """Forget all other replicas."""
        file = self.storage.catalog.files[name]
        kept = [one for one in file.replicas if one.storage_element == element]
        del file.replicas[:]
        file.replicas.extend(kept)


def element(name: str, server: WebServer, folder: str, credential: str) -> storage_element_pb2.StorageElement:
    """Describe a folder of a server."""
    wanted = storage_element_pb2.StorageElement(
        name=f"storageElements/{name}", media=storage_element_pb2.StorageElement.MEDIA_DISK
    )
    options = {"authorities": str(server.authorities)}
    wanted.access_points.add(
        protocol="davs", address=f"{server.address}/{folder}", credential=credential, options=options
    )
    return wanted


async def create(stub: Any, wanted: storage_element_pb2.StorageElement) -> storage_element_pb2.StorageElement:
    """Make an element known."""
    request = pb.CreateStorageElementRequest(storage_element=wanted, request_id=str(uuid4()))
    made: storage_element_pb2.StorageElement = await stub.CreateStorageElement(request)
    return made


@pytest.fixture
async def grid(tmp_path: Path, apache: WebServer, xrootd: Xrootd) -> AsyncIterator[Grid]:
    servers = {"apache": apache, "xrd1": xrootd.servers[0], "xrd2": xrootd.servers[1]}
    credentials = {name: {"kind": "bearer", "options": {"file": str(one.token)}} for name, one in servers.items()}
    settings = {"poll": 0.05, "transfer_pause": 0.05, "deletion_pause": 0.05, "credentials": credentials}
    catalog = MemoryCatalog()
    async with (
        serve(memory_catalog(catalog), service, state=tmp_path / "state", settings={"storage": settings}) as served,
        aiohttp.ClientSession() as http,
    ):
        stub = StorageServiceStub(served.channel)
        folders = {name: one.open_folder(f"{name}-{uuid4().hex}") for name, one in servers.items()}
        for name, one in servers.items():
            await create(stub, element(name, one, folders[name].name, name))
        yield Grid(Storage(served, stub, catalog, http, tmp_path / "state/storage/local"), folders)


def visible(folder: Path) -> list[str]:
    """List files, without what is hidden."""
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return sorted(str(path) for path in files)


async def test_file_goes_round_the_storages_and_comes_back(grid: Grid) -> None:
    await grid.storage.store("/hess/file", DATA)

    for source, destination in (("local", "apache"), ("apache", "xrd1"), ("xrd1", "xrd2")):
        transfer = await grid.copied("/hess/file", source, destination)
        assert transfer.state == Transfer.STATE_SUCCEEDED, transfer
        assert [(one.source, one.message) for one in transfer.attempts] == [(source, "")]
        assert visible(grid.folders[destination]) == ["hess/file"]
        assert (grid.folders[destination] / "hess/file").read_bytes() == DATA

    grid.only_on("/hess/file", "xrd2")
    (grid.storage.root / "hess/file").unlink()
    transfer = await grid.copied("/hess/file", "xrd2", "local")
    assert transfer.state == Transfer.STATE_SUCCEEDED, transfer
    assert (grid.storage.root / "hess/file").read_bytes() == DATA


async def test_file_elsewhere_is_read_through_the_door(grid: Grid) -> None:
    await grid.storage.store("/hess/a b%20c", DATA)
    await grid.copied("/hess/a b%20c", "local", "apache")
    grid.only_on("/hess/a b%20c", "apache")

    download = await grid.storage.download("/hess/a b%20c")
    grant = download.grants[0]
    answers = []
    for more in ({}, {"Range": "bytes=5-8"}, {"Range": "bytes=-3"}, {"Range": f"bytes={len(DATA)}-"}):
        async with grid.storage.http.get(grant.url, headers={**grant.headers, **more}) as answer:
            answers.append((answer.status, await answer.read() if answer.status < 300 else b""))
    assert answers == [(200, DATA), (206, b"5678"), (206, b"789"), (416, b"")]
    assert grant.local_path == ""


async def test_damaged_bytes_at_a_server_are_seen(grid: Grid) -> None:
    await grid.storage.store("/hess/file", DATA)
    await grid.copied("/hess/file", "local", "xrd1")
    (grid.folders["xrd1"] / "hess/file").write_bytes(DATA[:-1] + b"x")

    transfer = await grid.copied("/hess/file", "xrd1", "xrd2")

    assert transfer.attempts[0].reason == transfer_pb2.TRANSFER_REASON_SOURCE_CHECKSUM, transfer
    assert visible(grid.folders["xrd2"]) == []


async def test_element_tells_its_access_point_and_refuses_what_is_wrong(grid: Grid, apache: WebServer) -> None:
    wanted = element("again", apache, grid.folders["apache"].name, "apache")
    made = await create(grid.storage.stub, wanted)
    assert made.access_points == wanted.access_points

    wrong = element("wrong", apache, "x", "nobody")
    with pytest.raises(grpc.aio.AioRpcError, match="apache, xrd1, xrd2"):
        await create(grid.storage.stub, wrong)
    wrong = element("wrong", apache, "x", "apache")
    wrong.access_points[0].options["speed"] = "high"
    with pytest.raises(grpc.aio.AioRpcError, match="option speed") as caught:
        await create(grid.storage.stub, wrong)
    assert reason_of(caught.value) == "ADDRESS_INVALID"
