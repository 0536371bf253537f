"""A storage service with its door at a given port and a catalogue in memory: `python -m tests.testbeds.door_server`."""

import asyncio
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc

from khomas.api.storage.v1 import storage_element_pb2, storage_service_pb2
from khomas.api.storage.v1.storage_service_pb2_grpc import StorageServiceStub
from khomas.kit.auth.tokens import IssuedTokens
from khomas.kit.channel import ServiceChannel, open_channel
from khomas.kit.embedded import Installation, Layout, embedded
from khomas.storage.app import service
from khomas.storage.testing import MemoryCatalog, memory_catalog

_RIGHTS = ("storage.read:/", "storage.modify:/")


async def serve(folder: Path, port: int, authorities: Path) -> None:
    """Serve until the process is ended. `ready` is there when the StorageElements are."""
    settings: Mapping[str, Any] = {
        "local_root": folder / "data",
        "door_peers": ("https://*", "http://127.0.0.1:*"),
        "door_authorities": authorities,
    }
    layout = Layout(folder / "state", http_listen={"storage": f"127.0.0.1:{port}"}, settings={"storage": settings})
    async with embedded([memory_catalog(MemoryCatalog()), service], layout) as installation:
        await _make(installation, "full", folder / "data/full")
        await _make(installation, "forbidden", folder / "data/forbidden", read_only=True)
        _write(folder / "token", installation.issuer.token("tester", _RIGHTS, expires_in=timedelta(hours=5)))
        (folder / "ready").touch()
        await asyncio.Event().wait()


async def _make(installation: Installation, name: str, root: Path, *, read_only: bool = False) -> None:
    element = storage_element_pb2.StorageElement(
        name=f"storageElements/{name}",
        media=storage_element_pb2.StorageElement.MEDIA_DISK,
        access_points=[storage_element_pb2.AccessPoint(protocol="posix", address=str(root))],
        read_only=read_only,
    )
    request = storage_service_pb2.CreateStorageElementRequest(storage_element=element, request_id=str(uuid4()))
    async with open_channel(installation.endpoint, plaintext=True) as bare:
        stub = StorageServiceStub(ServiceChannel(bare, "storage", IssuedTokens(installation.issuer, "tester")))
        # After a restart it is there.
        with suppress(grpc.aio.AioRpcError):
            await stub.CreateStorageElement(request)


def _write(path: Path, token: str) -> None:
    new = path.with_suffix(".new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(token)
    new.replace(path)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])))
