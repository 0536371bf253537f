"""Files: put, get, find, delete, metadata, datasets, adoption."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from khomas.client import bytes_moving
from khomas.client.bytes_moving import Progress
from khomas.client.connection import Connection
from khomas.client.errors import KhomasError, UsageError, from_status
from khomas.client.parts import chunks
from khomas.client.specs import dataset_name

_PARALLEL = 8
_COMMIT_SECONDS = 600.0
_GRANT_FILES = 1000
DATASETS = "datasets/"


@dataclass(frozen=True, slots=True)
class Pair:
    """A file here and its LFN."""

    path: Path
    name: str


def nothing(length: int) -> None:
    """Ignore progress."""


def below(path: Path, name: str) -> list[Pair]:
    """Pair a local file, or all files below a folder, with LFNs."""
    if path.is_dir():
        return [Pair(one, f"{name}/{one.relative_to(path)}") for one in sorted(path.rglob("*")) if one.is_file()]
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    return [Pair(path, name)]


class Files:
    """What a client does with files."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def put(
        self,
        pairs: Sequence[Pair],
        *,
        storage_elements: Sequence[str] = (),
        datasets: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
        progress: Progress = nothing,
    ) -> list[Any]:
        """Bring files in; all of a chunk are in the catalogue together, or none. Returns CommittedFile messages."""
        committed: list[Any] = []
        for part in chunks(pairs, _GRANT_FILES):
            committed += await self._put(part, storage_elements, datasets, metadata or {}, progress)
        return committed

    async def _put(
        self,
        pairs: Sequence[Pair],
        storage_elements: Sequence[str],
        datasets: Sequence[str],
        metadata: Mapping[str, Any],
        progress: Progress,
    ) -> list[Any]:
        from khomas.api.storage.v1 import grant_pb2
        from khomas.api.storage.v1 import storage_service_pb2 as pb

        total = sum(pair.path.stat().st_size for pair in pairs)
        wanted = grant_pb2.Upload(storage_elements=storage_elements, max_files=len(pairs), reserve_bytes=total)
        request = pb.BatchCreateUploadsRequest(uploads=[wanted], request_id=str(uuid4()))
        (upload,) = (await self._connection.call("storage", "BatchCreateUploads", request)).uploads
        try:
            sums = await _in_parallel(
                lambda item: _send(item[1].path, upload.grant, item[0], progress), list(enumerate(pairs))
            )
            commit = pb.BatchCommitUploadsRequest(request_id=str(uuid4()))
            for index, (pair, checksum) in enumerate(zip(pairs, sums, strict=True)):
                one = commit.files.add(upload=upload.name, index=index, name=pair.name)
                one.size_bytes = pair.path.stat().st_size
                one.checksums.adler32 = checksum
                one.datasets.extend(dataset_name(name) for name in datasets)
                for key, value in metadata.items():
                    one.metadata[key].CopyFrom(as_value(value))
            answer = await self._connection.call("storage", "BatchCommitUploads", commit, timeout=_COMMIT_SECONDS)
        except BaseException:
            await self._abandon(upload.name)
            raise
        return list(answer.files)

    async def _abandon(self, name: str) -> None:
        from khomas.api.storage.v1 import storage_service_pb2 as pb

        request = pb.BatchAbandonUploadsRequest(names=[name], request_id=str(uuid4()))
        try:
            await self._connection.call("storage", "BatchAbandonUploads", request, timeout=10)
        except KhomasError:
            return  # it expires by itself

    async def get(self, pairs: Sequence[Pair], *, overwrite: bool = False, progress: Progress = nothing) -> list[Path]:
        """Fetch files; each is complete and has its checksum, or is absent."""
        from khomas.api.storage.v1 import storage_service_pb2 as pb

        taken = [pair.path for pair in pairs if pair.path.exists()]
        if taken and not overwrite:
            raise UsageError(f"{taken[0]} exists; give another place, or --overwrite")
        for part in chunks(pairs, _GRANT_FILES):
            request = pb.BatchCreateDownloadsRequest(names=[pair.name for pair in part])
            answer = await self._connection.call("storage", "BatchCreateDownloads", request)
            for found in answer.downloads:
                if not found.grants:
                    raise from_status(found.error)
            await _in_parallel(
                lambda item: _receive(item[0], item[1], progress), list(zip(part, answer.downloads, strict=True))
            )
        return [pair.path for pair in pairs]

    async def find(
        self, directory: str = "", *, filter_text: str = "", dataset: str = "", order_by: str = "", as_of: Any = None
    ) -> AsyncIterator[Any]:
        """Search files, without limit; yields File messages."""
        from khomas.api.catalog.v1 import catalog_service_pb2 as pb

        request = pb.ListFilesRequest(
            directory=directory, filter=filter_text, dataset=dataset_name(dataset), order_by=order_by
        )
        if as_of is not None:
            request.as_of_time.FromDatetime(as_of)
        async for answer in self._connection.stream("catalog", "StreamFiles", request):
            for file in answer.files:
                yield file

    async def stat(self, names: Sequence[str]) -> list[Any]:
        """Read files by name; raises for the first that does not exist."""
        from khomas.api.catalog.v1 import catalog_service_pb2 as pb

        found = []
        for part in chunks(names):
            request = pb.BatchGetFilesRequest(names=part)
            for result in (await self._connection.call("catalog", "BatchGetFiles", request)).results:
                if not result.HasField("file"):
                    raise from_status(result.error)
                found.append(result.file)
        return found

    async def list_directory(self, directory: str) -> list[Any]:
        """List what lies directly in a directory."""
        from khomas.api.catalog.v1 import catalog_service_pb2 as pb

        request = pb.ListDirectoryRequest(directory=directory, page_size=10_000)
        entries: list[Any] = []
        while True:
            answer = await self._connection.call("catalog", "ListDirectory", request)
            entries += answer.entries
            if not answer.next_page_token:
                return entries
            request.page_token = answer.next_page_token

    async def delete(self, names: Sequence[str], reason: str, *, force: bool = False) -> list[Any]:
        """Mark files as wanted gone."""
        from khomas.api.catalog.v1 import catalog_service_pb2 as pb

        gone: list[Any] = []
        for part in chunks(names):
            request = pb.BatchDeleteFilesRequest(names=part, reason=reason, force=force, request_id=str(uuid4()))
            gone += (await self._connection.call("catalog", "BatchDeleteFiles", request)).files
        return gone

    async def undelete(self, names: Sequence[str]) -> list[Any]:
        """Take deletions back."""
        from khomas.api.catalog.v1 import catalog_service_pb2 as pb

        back: list[Any] = []
        for part in chunks(names):
            request = pb.BatchUndeleteFilesRequest(names=part, request_id=str(uuid4()))
            back += (await self._connection.call("catalog", "BatchUndeleteFiles", request)).files
        return back

    async def set_metadata(self, names: Sequence[str], values: Mapping[str, Any], remove: Sequence[str] = ()) -> int:
        """Set and remove metadata of files; returns how many changed."""
        from khomas.api.catalog.v1 import catalog_service_pb2 as pb

        changed = 0
        for part in chunks(names):
            request = pb.BatchUpdateMetadataRequest(request_id=str(uuid4()))
            for name in part:
                one = request.updates.add(name=name, remove=remove)
                for key, value in values.items():
                    one.set[key].CopyFrom(as_value(value))
            changed += (await self._connection.call("catalog", "BatchUpdateMetadata", request)).changed
        return changed

    async def adopt(self, adoption: Any, *, validate_only: bool = False) -> Any:
        """Start the adoption of a tree."""
        from khomas.api.catalog.v1 import catalog_service_pb2 as pb

        request = pb.CreateAdoptionRequest(adoption=adoption, validate_only=validate_only, request_id=str(uuid4()))
        return await self._connection.call("catalog", "CreateAdoption", request)


def as_value(plain: Any) -> Any:
    """Return a plain value, or text that reads as a number or a boolean, as a Value."""
    from khomas.api.common.v1.value_pb2 import Value

    if isinstance(plain, bool) or plain in ("true", "false"):
        return Value(boolean=plain in (True, "true"))
    if isinstance(plain, int):
        return Value(integer=plain)
    if isinstance(plain, float):
        return Value(number=plain)
    try:
        return Value(integer=int(str(plain)))
    except ValueError:
        pass
    try:
        return Value(number=float(str(plain)))
    except ValueError:
        return Value(text=str(plain))


def plain_value(value: Any) -> Any:
    """Return a Value as plain Python."""
    kind = value.WhichOneof("kind")
    if kind == "time":
        return value.time.ToJsonString()
    return getattr(value, kind) if kind else None


async def _in_parallel(work: Any, items: Sequence[Any]) -> list[Any]:
    """Run blocking work in threads, some at a time; the first failure ends it."""
    slots = asyncio.Semaphore(_PARALLEL)

    async def one(item: Any) -> Any:
        async with slots:
            return await asyncio.to_thread(work, item)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(item)) for item in items]
    except BaseExceptionGroup as failures:
        # The first is the cause; the others were on their way when it happened.
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


def _send(source: Path, grant: Any, index: int, progress: Progress) -> str:
    folder = Path(grant.local_path) if grant.local_path else None
    if folder is not None and os.access(folder, os.W_OK):
        return bytes_moving.copy(source, folder / str(index), progress)
    return bytes_moving.upload(source, f"{grant.url}{index}", grant.headers, progress)


def _receive(pair: Pair, download: Any, progress: Progress) -> None:
    pair.path.parent.mkdir(parents=True, exist_ok=True)
    problem: KhomasError | None = None
    for grant in download.grants:
        try:
            _fetch(pair.path, grant, progress, download.checksums.adler32)
        except KhomasError as error:
            problem = error
        else:
            return
    raise problem or KhomasError(f"{pair.name} has no copy to read from", "NO_REPLICA")


def _fetch(target: Path, grant: Any, progress: Progress, expected: str) -> None:
    if grant.local_path and os.access(grant.local_path, os.R_OK):
        bytes_moving.copy(Path(grant.local_path), target, progress, expected)
    else:
        bytes_moving.download(grant.url, grant.headers, target, progress, expected)
