"""For tests: a small catalogue in memory behind a real server, and a running storage with ways to talk to it."""

# The names of the methods are the contract's.
# ruff: noqa: N802

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar, cast
from uuid import uuid4

import aiohttp
import grpc
from google.protobuf.message import Message
from google.rpc import code_pb2, status_pb2
from zlib_ng.zlib_ng import adler32

from khomas.api.catalog.v1 import catalog_service_pb2 as pb
from khomas.api.catalog.v1 import catalog_service_pb2_grpc, dataset_pb2, file_pb2
from khomas.api.common.v1 import checksum_pb2, event_pb2
from khomas.api.storage.v1 import grant_pb2, storage_element_pb2
from khomas.api.storage.v1 import storage_service_pb2 as storage_pb
from khomas.api.storage.v1.storage_service_pb2_grpc import StorageServiceStub
from khomas.kit.boundary.call import Context
from khomas.kit.config import ServiceSettings
from khomas.kit.errors import DomainError
from khomas.kit.ids import new_uid
from khomas.kit.service import Host, Running, Service
from khomas.kit.testing import Served


class FileExists(DomainError):
    """As the real catalogue says it."""

    code = grpc.StatusCode.ALREADY_EXISTS
    area = "catalog"
    reason = "FILE_EXISTS"
    template = "There is another file {name}."


R = TypeVar("R", pb.BatchCreateFilesRequest, pb.BatchUpdateReplicasRequest)
A = TypeVar("A", bound=Message)


@dataclass(slots=True)
class MemoryCatalog:
    """What tests see of the catalogue and change in it."""

    files: dict[str, file_pb2.File] = field(default_factory=dict)
    datasets: dict[str, set[str]] = field(default_factory=dict)
    events: list[event_pb2.Event] = field(default_factory=list)
    # Called before and after a method has done its work, with its name; what it raises goes to the caller.
    before: Callable[[str], None] = lambda _: None
    after: Callable[[str], None] = lambda _: None
    # Awaited before each file of a listing, with its number.
    turning: Callable[[int], Awaitable[None]] | None = None
    # How many of the oldest events are not kept any more.
    forgotten: int = 0
    calls: list[str] = field(default_factory=list)
    answers: dict[str, Message] = field(default_factory=dict)
    _names: dict[str, str] = field(default_factory=dict)
    appended: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self, kind: str, file: file_pb2.File) -> None:
        """Log an event about a file."""
        event = event_pb2.Event(uid=new_uid(), kind=kind, subject=file.name, subject_uid=file.uid)
        event.cursor = str(len(self.events) + 1)
        event.create_time.GetCurrentTime()
        event.resource.Pack(file)
        self.events.append(event)
        self.appended.set()

    def by_uid(self, uid: str) -> file_pb2.File:
        """Return a file that is not gone."""
        found = self.files.get(self._names.get(uid, ""))
        if found is None or found.uid != uid:
            self._names = {file.uid: name for name, file in self.files.items()}
            found = self.files[self._names[uid]]
        return found

    def delete(self, name: str, window: timedelta = timedelta(0)) -> None:
        """Want a file gone."""
        file = self.files[name]
        file.state = file_pb2.File.STATE_DELETING
        file.deletion.purge_time.FromDatetime(datetime.now(UTC) + window)
        self.tell("catalog.file.deleting", file)

    def undelete(self, name: str) -> None:
        """Take that back."""
        file = self.files[name]
        file.state = file_pb2.File.STATE_ACTIVE
        file.ClearField("deletion")
        self.tell("catalog.file.undeleted", file)


class _Servicer(catalog_service_pb2_grpc.CatalogServiceServicer):
    def __init__(self, catalog: MemoryCatalog) -> None:
        self._catalog = catalog

    async def BatchCreateFiles(
        self, request: pb.BatchCreateFilesRequest, context: Context
    ) -> pb.BatchCreateFilesResponse:
        return self._once("BatchCreateFiles", request, self._create)

    def _create(self, request: pb.BatchCreateFilesRequest) -> pb.BatchCreateFilesResponse:
        known = self._catalog.files
        for file in request.files:
            there = known.get(file.name)
            if there is not None and there.checksums.adler32 != file.checksums.adler32:
                raise FileExists(name=file.name)
        existing = sum(file.name in known for file in request.files)
        for file in request.files:
            if file.name in known:
                continue
            stored = file_pb2.File()
            stored.CopyFrom(file)
            stored.uid, stored.state = new_uid(), file_pb2.File.STATE_ACTIVE
            for replica in stored.replicas:
                replica.state = file_pb2.Replica.STATE_AVAILABLE
            known[file.name] = stored
            self._catalog.tell("catalog.file.created", stored)
        for dataset in request.datasets:
            self._catalog.datasets.setdefault(dataset, set()).update(file.name for file in request.files)
        return pb.BatchCreateFilesResponse(uids=[known[file.name].uid for file in request.files], existing=existing)

    async def BatchGetFiles(self, request: pb.BatchGetFilesRequest, context: Context) -> pb.BatchGetFilesResponse:
        self._catalog.before("BatchGetFiles")
        by_uid = {f"files/{file.uid}": file for file in self._catalog.files.values()}
        active = {name: file for name, file in self._catalog.files.items() if file.state == file.STATE_ACTIVE}
        missing = status_pb2.Status(code=code_pb2.NOT_FOUND, message="There is no such file.")
        found = [active.get(name) or by_uid.get(name) for name in request.names]
        return pb.BatchGetFilesResponse(
            results=[pb.FileResult(file=file) if file else pb.FileResult(error=missing) for file in found]
        )

    async def BatchUpdateReplicas(
        self, request: pb.BatchUpdateReplicasRequest, context: Context
    ) -> pb.BatchUpdateReplicasResponse:
        return self._once("BatchUpdateReplicas", request, self._update)

    def _update(self, request: pb.BatchUpdateReplicasRequest) -> pb.BatchUpdateReplicasResponse:
        deleted = 0
        for change in request.updates:
            uid = change.name.removeprefix("files/")
            file = self._catalog.by_uid(uid) if uid != change.name else self._catalog.files[change.name]
            gone = {*change.remove, *(replica.storage_element for replica in change.set)}
            kept = [replica for replica in file.replicas if replica.storage_element not in gone]
            del file.replicas[:]
            file.replicas.extend([*kept, *change.set])
            if file.state == file.STATE_DELETING and not file.replicas:
                file.state = file.STATE_DELETED
                deleted += 1
                self._catalog.tell("catalog.file.deleted", file)
                del self._catalog.files[file.name]
            else:
                self._catalog.tell("catalog.file.updated", file)
        return pb.BatchUpdateReplicasResponse(deleted_files=deleted)

    async def GetDataset(self, request: pb.GetDatasetRequest, context: Context) -> dataset_pb2.Dataset:
        return dataset_pb2.Dataset(name=request.name, state=dataset_pb2.Dataset.STATE_OPEN)

    async def ListFiles(self, request: pb.ListFilesRequest, context: Context) -> pb.ListFilesResponse:
        """Only members of a dataset, all at once."""
        self._catalog.before("ListFiles")
        members = sorted(self._catalog.datasets.get(request.dataset, ()))
        return pb.ListFilesResponse(files=[self._catalog.files[name] for name in members])

    async def StreamFiles(self, request: pb.ListFilesRequest, context: Context) -> AsyncIterator[pb.ListFilesResponse]:
        """Stream all files that are not gone, as of this moment, each by itself."""
        snapshot = pb.ListFilesResponse(files=self._catalog.files.values())
        for number, file in enumerate(snapshot.files):
            if self._catalog.turning is not None:
                await self._catalog.turning(number)
            yield pb.ListFilesResponse(files=[file])

    async def StreamReplicas(
        self, request: pb.StreamReplicasRequest, context: Context
    ) -> AsyncIterator[pb.StreamReplicasResponse]:
        """All in one message."""
        self._catalog.before("StreamReplicas")
        yield pb.StreamReplicasResponse(
            files=[
                pb.LocatedFile(name=file.name, uid=file.uid, state=file.state, replica=replica)
                for file in self._catalog.files.values()
                for replica in file.replicas
                if replica.storage_element == request.storage_element and replica.path in request.paths
            ]
        )

    async def UpdateDatasetFiles(self, request: pb.UpdateDatasetFilesRequest, context: Context) -> dataset_pb2.Dataset:
        self._catalog.datasets.setdefault(request.name, set()).update(request.add)
        return dataset_pb2.Dataset(name=request.name, state=dataset_pb2.Dataset.STATE_OPEN)

    async def WatchEvents(
        self, request: event_pb2.WatchEventsRequest, context: Context
    ) -> AsyncIterator[event_pb2.WatchEventsResponse]:
        position = len(self._catalog.events) if request.cursor == "now" else int(request.cursor or 0)
        if position < self._catalog.forgotten:
            await context.abort(grpc.StatusCode.OUT_OF_RANGE, "list again")
        while True:
            events = self._catalog.events[position:]
            position += len(events)
            yield event_pb2.WatchEventsResponse(events=events, cursor=str(position))
            if request.until_now:
                return
            self._catalog.appended.clear()
            if position == len(self._catalog.events):
                await self._catalog.appended.wait()

    def _once(self, method: str, request: R, work: Callable[[R], A]) -> A:
        """Answer a repeated request_id with the first answer, like the real one."""
        self._catalog.calls.append(method)
        self._catalog.before(method)
        if request.request_id not in self._catalog.answers:
            self._catalog.answers[request.request_id] = work(request)
        self._catalog.after(method)
        return cast(A, self._catalog.answers[request.request_id])  # stored by the same work


class _Settings(ServiceSettings, env_prefix="KHOMAS_CATALOG_"):
    """It has none."""


def memory_catalog(catalog: MemoryCatalog) -> Service[_Settings]:
    """Return a catalogue to host beside the storage."""

    async def start(_: _Settings, __: Host) -> Running:
        servicer = _Servicer(catalog)  # type: ignore[abstract]  # only what the storage calls
        return Running(
            add_to=lambda server: catalog_service_pb2_grpc.add_CatalogServiceServicer_to_server(servicer, server)
        )

    return Service("catalog", _Settings, start)


@dataclass(frozen=True, slots=True)
class Storage:
    """A running storage."""

    served: Served
    stub: StorageServiceStub
    catalog: MemoryCatalog
    http: aiohttp.ClientSession
    root: Path

    @property
    def parts(self) -> Any:
        """Return what the service shows to tests."""
        return self.served.services["storage"].parts

    async def element(self, name: str, root: Path) -> None:
        """Make a folder a StorageElement."""
        element = storage_element_pb2.StorageElement(name=f"storageElements/{name}")
        element.media = storage_element_pb2.StorageElement.MEDIA_DISK
        element.access_points.add(protocol="posix", address=str(root))
        request = storage_pb.CreateStorageElementRequest(storage_element=element, request_id=str(uuid4()))
        await self.stub.CreateStorageElement(request)

    async def open(self, **upload: Any) -> grant_pb2.Upload:
        """Open one upload."""
        request = storage_pb.BatchCreateUploadsRequest(uploads=[grant_pb2.Upload(**upload)], request_id=str(uuid4()))
        return (await self.stub.BatchCreateUploads(request)).uploads[0]

    async def put(
        self, upload: grant_pb2.Upload, content: bytes, index: int = 0, **headers: str
    ) -> tuple[int, dict[str, Any]]:
        """PUT one file through the door."""
        url, all_headers = f"{upload.grant.url}{index}", {**upload.grant.headers, **headers}
        async with self.http.put(url, data=BytesIO(content), headers=all_headers) as answer:
            return answer.status, await answer.json()

    async def commit(
        self, *files: storage_pb.UploadCommit, request_id: str = ""
    ) -> storage_pb.BatchCommitUploadsResponse:
        """Commit uploaded files."""
        request = storage_pb.BatchCommitUploadsRequest(files=files, request_id=request_id or str(uuid4()))
        return await self.stub.BatchCommitUploads(request)

    async def store(self, name: str, content: bytes) -> storage_pb.CommittedFile:
        """Bring one file all the way in."""
        upload = await self.open()
        await self.put(upload, content)
        return (await self.commit(self.wanted(upload, name, content))).files[0]

    async def download(self, name: str) -> storage_pb.Download:
        """Ask how to read one file."""
        return (await self.stub.BatchCreateDownloads(storage_pb.BatchCreateDownloadsRequest(names=[name]))).downloads[0]

    @staticmethod
    def wanted(
        upload: grant_pb2.Upload, name: str, content: bytes, index: int = 0, **fields: Any
    ) -> storage_pb.UploadCommit:
        """Say what an uploaded file becomes."""
        checksums = checksum_pb2.Checksums(adler32=f"{adler32(content):08x}")
        return storage_pb.UploadCommit(
            upload=upload.name, index=index, name=name, size_bytes=len(content), checksums=checksums, **fields
        )

    async def uploads(self, *uploads: grant_pb2.Upload) -> list[grant_pb2.Upload]:
        """Read uploads back."""
        request = storage_pb.BatchGetUploadsRequest(names=[upload.name for upload in uploads])
        return list((await self.stub.BatchGetUploads(request)).uploads)

    def place(self, upload: grant_pb2.Upload, content: bytes, index: int = 0) -> None:
        """Put one file straight into the staging folder."""
        Path(upload.grant.local_path, str(index)).write_bytes(content)

    def visible(self) -> list[str]:
        """List what lies on the StorageElement, without what is hidden."""
        files = (path.relative_to(self.root) for path in self.root.rglob("*") if path.is_file())
        return sorted(str(path) for path in files if path.parts[0] != ".khomas")


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 60) -> None:
    """Wait for something that background loops do."""
    async with asyncio.timeout(seconds):
        for pause in itertools.repeat(0.02):
            if await condition():
                return
            await asyncio.sleep(pause)


def own(statements: Iterable[str]) -> list[str]:
    """Leave out what StorageElements there are: that is read again every few seconds, by whoever calls then."""
    return [one for one in statements if "FROM storage_element" not in one]
