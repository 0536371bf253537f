"""What tests of recalls have in common: a storage service with an emulated tape system, and files on its tapes."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
from zlib_ng.zlib_ng import adler32

from khomas.api.catalog.v1 import file_pb2
from khomas.api.storage.v1 import recall_pb2, transfer_pb2
from khomas.api.storage.v1 import recall_service_pb2 as pb
from khomas.api.storage.v1 import storage_service_pb2 as storage_pb
from khomas.api.storage.v1.recall_service_pb2_grpc import RecallServiceStub
from khomas.api.storage.v1.storage_element_pb2 import AccessPoint, StorageElement
from khomas.api.storage.v1.storage_service_pb2_grpc import StorageServiceStub
from khomas.kit.ids import new_uid
from khomas.kit.service import Service
from khomas.kit.testing import serve
from khomas.storage.app import service
from khomas.storage.testing import MemoryCatalog, Storage, memory_catalog, until
from tests.testbeds.tape import Tape

State = recall_pb2.Recall.State
ELEMENT = "lyon-hpss"
CONTENT = b"0123456789"
# For states that background loops bring about, on a machine that is busy with other things.
PATIENCE = 90.0
SETTINGS = {"poll": 0.05, "recall_poll": 0.2, "recall_pause": 0.3, "recall_gather": 0.3, "recall_attempts": 2}


@dataclass(frozen=True, slots=True)
class Recalled:
    """A storage service with a StorageElement of tape."""

    storage: Storage
    recalls: RecallServiceStub

    def known(self, name: str) -> None:
        """Have a file in the catalogue that is on tape."""
        file = file_pb2.File(name=name, uid=new_uid(), size_bytes=len(CONTENT), state=file_pb2.File.STATE_ACTIVE)
        file.checksums.adler32 = f"{adler32(CONTENT):08x}"
        file.replicas.add(storage_element=ELEMENT, path=name[1:], state=file_pb2.Replica.STATE_AVAILABLE)
        self.storage.catalog.files[name] = file

    async def copied(self, name: str, destination: str) -> None:
        """Copy a file, and wait until that has succeeded."""
        wanted = transfer_pb2.Transfer(file=name, destination=destination)
        request = storage_pb.BatchCreateTransfersRequest(transfers=[wanted], request_id=str(uuid4()))
        (made,) = (await self.storage.stub.BatchCreateTransfers(request)).results

        async def succeeded() -> bool:
            found = await self.storage.stub.GetTransfer(storage_pb.GetTransferRequest(name=made.transfer.name))
            return found.state == transfer_pb2.Transfer.STATE_SUCCEEDED

        await until(succeeded, PATIENCE)

    def only_on(self, name: str, element: str) -> None:
        """Forget all other replicas."""
        file = self.storage.catalog.files[name]
        kept = [one for one in file.replicas if one.storage_element == element]
        del file.replicas[:]
        file.replicas.extend(kept)

    async def recall(self, names: Sequence[str], **more: Any) -> list[recall_pb2.Recall]:
        """Want files on disk."""
        request = pb.BatchCreateRecallsRequest(files=names, request_id=str(uuid4()), **more)
        return [one.recall for one in (await self.recalls.BatchCreateRecalls(request)).results]

    async def all(self, filter_text: str = "") -> list[recall_pb2.Recall]:
        """List recalls."""
        request = pb.ListRecallsRequest(page_size=1000, filter=filter_text, order_by="create_time")
        return list((await self.recalls.ListRecalls(request)).recalls)

    async def until(self, condition: Callable[[list[recall_pb2.Recall]], bool]) -> list[recall_pb2.Recall]:
        """Wait until recalls are so."""
        found: list[recall_pb2.Recall] = []

        async def holds() -> bool:
            found[:] = await self.all()
            return condition(found)

        await until(holds, PATIENCE)
        return found

    async def until_all(self, state: int) -> list[recall_pb2.Recall]:
        """Wait until all have a state."""
        return await self.until(lambda found: bool(found) and all(one.state == state for one in found))


@dataclass(frozen=True, slots=True)
class Site(Recalled):
    """One with an emulated tape system, and files on its tapes."""

    tape: Tape
    # Of one test.
    folder: str

    def keep(self, number: int) -> list[str]:
        """Have files on tape, in the catalogue too."""
        names = [f"/{self.folder}/run {index:04d}" for index in range(number)]
        for name in names:
            self.tape.keep(name[1:], CONTENT)
            self.known(name)
        return names

    async def deliver(self, number: int) -> list[str]:
        """Bring some files of this test to disk, as soon as the tape system has them in its queue."""

        async def waiting() -> bool:
            return len(self.tape.waiting(self.folder)) >= number

        await until(waiting, PATIENCE)
        return self.tape.deliver(number, self.folder)

    async def asked(self, number: int) -> list[int]:
        """Return the sizes of the requests about files of this test, when they were about so many in all.

        The server takes a request before the tape system has heard of it.
        """

        async def heard() -> bool:
            return sum(self.tape.requests("stage", self.folder)) >= number

        await until(heard, PATIENCE)
        return self.tape.requests("stage", self.folder)


@asynccontextmanager
async def site_of(
    tape: Tape, folder: Path, *more: Service[Any], settings: Mapping[str, Any] | None = None
) -> AsyncIterator[Site]:
    """Start a storage with this tape system, and other services beside it."""
    tape.server.start()
    point = AccessPoint(protocol="root", address=tape.address, options={"tape": "true", "seconds": "30"})
    async with recalled_at(point, folder, *more, settings=settings) as storage:
        yield Site(storage.storage, storage.recalls, tape, uuid4().hex)


@asynccontextmanager
async def recalled_at(
    point: AccessPoint, folder: Path, *more: Service[Any], settings: Mapping[str, Any] | None = None
) -> AsyncIterator[Recalled]:
    """Start a storage whose tape is reached there."""
    catalog = MemoryCatalog()
    services: list[Service[Any]] = [memory_catalog(catalog), service, *more]
    own = {"storage": SETTINGS | (settings or {}).get("storage", {})}
    async with (
        serve(*services, state=folder / "state", settings={**(settings or {}), **own}) as served,
        aiohttp.ClientSession() as http,
    ):
        stub = StorageServiceStub(served.channel)
        wanted = StorageElement(name=f"storageElements/{ELEMENT}", media=StorageElement.MEDIA_TAPE)
        wanted.access_points.append(point)
        request = storage_pb.CreateStorageElementRequest(storage_element=wanted, request_id=str(uuid4()))
        await stub.CreateStorageElement(request)
        storage = Storage(served, stub, catalog, http, folder / "state/storage/local")
        yield Recalled(storage, RecallServiceStub(served.channel))
