"""What the archive asks of the catalogue and the storage, and how bytes come and go."""

import asyncio
import os
import shutil
import uuid
import zlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, TypeVar

import grpc

from khomas.api.catalog.v1 import catalog_service_pb2, dataset_pb2, file_pb2
from khomas.api.catalog.v1.catalog_service_pb2_grpc import CatalogServiceStub
from khomas.api.common.v1 import checksum_pb2, value_pb2
from khomas.api.storage.v1 import grant_pb2, storage_service_pb2
from khomas.api.storage.v1.storage_service_pb2_grpc import StorageServiceStub

# 8 MiB, which a service pays with the first bytes that it fetches.
if TYPE_CHECKING:
    import aiohttp

T = TypeVar("T")

_NAMES: Final = 10_000
_READ: Final = 1024 * 1024
# Without a word about the state, the catalogue lists what is ACTIVE now.
_WHATEVER_BECAME_OF_THEM: Final = "state = ACTIVE OR state = DELETING OR state = DELETED"
# After these the same call may work later; everything else is a verdict.
_PASSING: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
    }
)


class Unreadable(Exception):
    """A file cannot be read as the catalogue has it."""


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file to bring in."""

    name: str
    path: Path
    parents: Sequence[str] = ()
    metadata: Mapping[str, value_pb2.Value] = field(default_factory=dict)
    content_digest: str = ""


def is_passing(error: BaseException) -> bool:
    """Tell whether to try again later."""
    if isinstance(error, grpc.aio.AioRpcError):
        return error.code() in _PASSING
    if isinstance(error, OSError | TimeoutError):
        return True
    from aiohttp import ClientError

    return isinstance(error, ClientError)


def derived_id(uid: str, purpose: str) -> str:
    """Return the request_id of one step of a release, the same at every try."""
    return str(uuid.uuid5(uuid.UUID(uid), purpose))


class Upstream:
    """Catalogue and storage, with a deadline on every call."""

    def __init__(
        self,
        catalog: grpc.aio.Channel,
        storage: grpc.aio.Channel,
        folder: Path,
        executor: ThreadPoolExecutor,
        deadline: timedelta,
        *,
        local_paths: bool,
    ) -> None:
        self._catalog = CatalogServiceStub(catalog)
        self._storage = StorageServiceStub(storage)
        self._folder = folder
        self._executor = executor
        self._seconds = deadline.total_seconds()
        self._local_paths = local_paths
        self._http: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._http is not None:
            await self._http.close()

    async def in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        """Read or write files off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)

    @asynccontextmanager
    async def workspace(self) -> AsyncIterator[Path]:
        """Give a folder that is gone afterwards."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self._folder) as name:
            yield Path(name)

    async def dataset(self, name: str) -> dataset_pb2.Dataset | None:
        """Read a dataset, None if there is none."""
        request = catalog_service_pb2.GetDatasetRequest(name=name)
        try:
            return await self._catalog.GetDataset(request, timeout=self._seconds)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise

    async def members(self, dataset: str, as_of: datetime | None = None, limit: int = 0) -> list[file_pb2.File]:
        """List the files of a dataset by name, as of a moment with those deleted since; 0 = all of them."""
        request = catalog_service_pb2.ListFilesRequest(dataset=dataset, view=catalog_service_pb2.FILE_VIEW_FULL)
        if as_of is not None:
            request.as_of_time.FromDatetime(as_of)
            request.filter = _WHATEVER_BECAME_OF_THEM
        files: list[file_pb2.File] = []
        stream = self._catalog.StreamFiles(request, timeout=10 * self._seconds)
        async for answer in stream:
            files.extend(answer.files)
            if limit and len(files) >= limit:
                stream.cancel()
                break
        return sorted(files, key=lambda file: file.name)[: limit or None]

    async def names(self, dataset: str) -> AsyncIterator[list[str]]:
        """The LFNs of the files of a dataset, many at a time."""
        request = catalog_service_pb2.ListFilesRequest(dataset=dataset)
        async for answer in self._catalog.StreamFiles(request, timeout=10 * self._seconds):
            yield [file.name for file in answer.files]

    async def files(self, names: Sequence[str]) -> dict[str, file_pb2.File]:
        """Read the files of these names that exist."""
        found = {}
        for start in range(0, len(names), _NAMES):
            request = catalog_service_pb2.BatchGetFilesRequest(
                names=names[start : start + _NAMES], view=catalog_service_pb2.FILE_VIEW_FULL
            )
            answer = await self._catalog.BatchGetFiles(request, timeout=self._seconds)
            found.update({result.file.name: result.file for result in answer.results if result.HasField("file")})
        return found

    async def fetch(self, files: Sequence[file_pb2.File], folder: Path) -> dict[str, Path | Unreadable]:
        """Make files readable, by LFN: where they lie if we can see that, else fetched into the folder."""
        request = storage_service_pb2.BatchCreateDownloadsRequest(names=[file.name for file in files])
        answer = await self._storage.BatchCreateDownloads(request, timeout=self._seconds)
        paths = await asyncio.gather(
            *(self._fetched(download, folder / str(number)) for number, download in enumerate(answer.downloads))
        )
        return {download.name: path for download, path in zip(answer.downloads, paths, strict=True)}

    async def put(
        self, files: Sequence[NewFile], origin: str, owner: str
    ) -> dict[str, storage_service_pb2.CommittedFile]:
        """Bring files in: all of them are in the catalogue then, or none."""
        sizes = await self.in_thread(lambda: [file.path.stat().st_size for file in files])
        upload = await self._open(len(files), sum(sizes), origin)
        sums = await asyncio.gather(*(self._sent(upload.grant, number, file.path) for number, file in enumerate(files)))
        commits = [
            storage_service_pb2.UploadCommit(
                upload=upload.name,
                index=number,
                name=file.name,
                checksums=checksum_pb2.Checksums(adler32=adler32, content_digest=file.content_digest),
                size_bytes=size,
                metadata=file.metadata,
                parents=file.parents,
            )
            for number, (file, adler32, size) in enumerate(zip(files, sums, sizes, strict=True))
        ]
        request = storage_service_pb2.BatchCommitUploadsRequest(
            files=commits, origin=origin, owner=owner, request_id=str(uuid.uuid4())
        )
        answer = await self._storage.BatchCommitUploads(request, timeout=self._seconds)
        return {file.name: file for file in answer.files}

    async def close_dataset(self, name: str, description: str, files: Sequence[str], origin: str, owner: str) -> None:
        """Make a dataset that has these files for ever; one that was made before by the same origin is finished."""
        there = await self.dataset(name)
        if there is not None and there.state == dataset_pb2.Dataset.STATE_CLOSED:
            return
        if there is None:
            create = catalog_service_pb2.CreateDatasetRequest(
                dataset=dataset_pb2.Dataset(name=name, description=description[:4096], origin=origin),
                request_id=derived_id(origin, "dataset"),
                owner=owner,
            )
            await self._catalog.CreateDataset(create, timeout=self._seconds)
        for start in range(0, len(files), _NAMES):
            update = catalog_service_pb2.UpdateDatasetFilesRequest(
                name=name, add=files[start : start + _NAMES], request_id=derived_id(origin, f"members {start}")
            )
            await self._catalog.UpdateDatasetFiles(update, timeout=self._seconds)
        close = catalog_service_pb2.CloseDatasetRequest(name=name, request_id=derived_id(origin, "close"))
        await self._catalog.CloseDataset(close, timeout=self._seconds)

    async def _open(self, count: int, size: int, origin: str) -> grant_pb2.Upload:
        upload = grant_pb2.Upload(max_files=count, reserve_bytes=size, origin=origin)
        request = storage_service_pb2.BatchCreateUploadsRequest(uploads=[upload], request_id=str(uuid.uuid4()))
        return (await self._storage.BatchCreateUploads(request, timeout=self._seconds)).uploads[0]

    async def _fetched(self, download: storage_service_pb2.Download, target: Path) -> Path | Unreadable:
        if not download.grants:
            return Unreadable(download.error.message or "there is no readable replica")
        local = next((grant.local_path for grant in download.grants if self._usable(grant, os.R_OK)), None)
        path = Path(local) if local else target / download.name.rpartition("/")[2]
        if not local:
            await self._get(download.grants[0], path)
        adler32 = await self.in_thread(adler32_of, path)
        if adler32 != download.checksums.adler32:
            return Unreadable(f"its Adler-32 is {adler32}, not {download.checksums.adler32} as in the catalogue")
        return path

    async def _get(self, grant: grant_pb2.AccessGrant, path: Path) -> None:
        path.parent.mkdir(parents=True)
        async with self._session().get(grant.url, headers=dict(grant.headers), raise_for_status=True) as answer:
            with path.open("wb") as stream:
                async for chunk in answer.content.iter_chunked(_READ):
                    await self.in_thread(stream.write, chunk)

    async def _sent(self, grant: grant_pb2.AccessGrant, number: int, path: Path) -> str:
        """Send one file; return its Adler-32."""
        if self._usable(grant, os.W_OK):
            await self.in_thread(shutil.copyfile, path, Path(grant.local_path) / str(number))
        else:
            with path.open("rb") as stream:
                url, headers = f"{grant.url}{number}", dict(grant.headers)
                async with self._session().put(url, data=stream, headers=headers, raise_for_status=True):
                    pass
        return await self.in_thread(adler32_of, path)

    def _usable(self, grant: grant_pb2.AccessGrant, mode: int) -> bool:
        return self._local_paths and bool(grant.local_path) and os.access(grant.local_path, mode)

    def _session(self) -> "aiohttp.ClientSession":
        if self._http is None:
            import aiohttp

            timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=self._seconds)
            self._http = aiohttp.ClientSession(timeout=timeout)
        return self._http


def adler32_of(path: Path) -> str:
    """Return the Adler-32 of a file."""
    value = 1
    with path.open("rb") as stream:
        while chunk := stream.read(_READ):
            value = zlib.adler32(chunk, value)
    return f"{value:08x}"
