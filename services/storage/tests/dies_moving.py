"""Copies many small files and is killed on the way: `dies_moving.py <state> <last step>`."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp

from khomas.api.storage.v1 import storage_element_pb2, transfer_pb2
from khomas.api.storage.v1 import storage_service_pb2 as pb
from khomas.api.storage.v1.storage_service_pb2_grpc import StorageServiceStub
from khomas.kit.plugins import installed, load
from khomas.kit.testing import serve
from khomas.storage.app import service
from khomas.storage.testing import MemoryCatalog, Storage
from khomas.storage.transfers.announcing import Announcing
from khomas.storage.transfers.moving import Moving
from khomas.storage.transfers.queue import Queue

FILES = 12
OWNERS: dict[str, Any] = {"announced": Announcing, "_copied": Moving, "_publish": Moving, "land": Moving}


async def main(state: Path, step: str) -> None:
    """Do the copies; never returns."""
    owner = OWNERS.get(step, Queue)
    done = getattr(owner, step)

    async def last(self: Any, *arguments: Any) -> None:
        await done(self, *arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, step, last)
    (state / "mirror").mkdir()
    catalog = load(installed("khomas.services")["catalog"])
    async with serve(catalog, service, state=state) as served, aiohttp.ClientSession() as http:
        storage = Storage(served, StorageServiceStub(served.channel), MemoryCatalog(), http, state / "storage/local")
        element = storage_element_pb2.StorageElement(
            name="storageElements/mirror", media=storage_element_pb2.StorageElement.MEDIA_DISK
        )
        element.access_points.add(protocol="posix", address=str(state / "mirror"))
        await storage.stub.CreateStorageElement(
            pb.CreateStorageElementRequest(storage_element=element, request_id=str(uuid4()))
        )
        names = [f"/hess/{number}" for number in range(FILES)]
        for name in names:
            await storage.store(name, name.encode())
        wanted = [transfer_pb2.Transfer(file=name, destination="mirror") for name in names]
        await storage.stub.BatchCreateTransfers(
            pb.BatchCreateTransfersRequest(transfers=wanted, request_id=str(uuid4()))
        )
        await asyncio.sleep(3600)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
