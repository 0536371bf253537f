"""Commits a file and is killed on the way: `dies.py <state> <request_id> <last step>`."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import aiohttp

from khomas.api.storage.v1.storage_service_pb2_grpc import StorageServiceStub
from khomas.kit.plugins import installed, load
from khomas.kit.testing import serve
from khomas.storage.app import service
from khomas.storage.catalog import Catalog
from khomas.storage.testing import MemoryCatalog, Storage
from khomas.storage.uploads.intents import Intents
from khomas.storage.uploads.placing import Placing


async def main(state: Path, request_id: str, step: str) -> None:
    """Do the commit; never returns."""
    owner: Any = {"record": Intents, "finish": Intents, "create_files": Catalog}.get(step, Placing)
    done = getattr(owner, step)

    async def last(self: Any, *arguments: Any, **more: Any) -> None:
        await done(self, *arguments, **more)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, step, last)
    catalog = load(installed("khomas.services")["catalog"])
    async with serve(catalog, service, state=state) as served, aiohttp.ClientSession() as http:
        root = state / "storage" / "local"
        storage = Storage(served, StorageServiceStub(served.channel), MemoryCatalog(), http, root)
        upload = await storage.open()
        storage.place(upload, b"bytes")
        (state / "upload").write_text(f"{upload.name}")
        await storage.commit(storage.wanted(upload, "/hess/file", b"bytes"), request_id=request_id)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
