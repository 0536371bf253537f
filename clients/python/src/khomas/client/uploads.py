"""Uploads: granted, sent, and in the catalogue a chunk at a time."""

import asyncio
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from google.protobuf.duration_pb2 import Duration

from khomas.client.bytes_moving import Progress, nothing
from khomas.client.checksums import KnownChecksums, Stamp, is_settled, stamp_of
from khomas.client.connection import Connection
from khomas.client.errors import TIMED_OUT, KhomasError
from khomas.client.pairs import Pair
from khomas.client.sending import Sent, send
from khomas.client.specs import dataset_name
from khomas.client.values import as_value
from khomas.client.workers import Workers, first_failure

_COMMIT_SECONDS = 600.0
# How long names are waited for that deleted files still have.
_DELETION_SECONDS, _LOOK_SECONDS = 600.0, 0.3
_FILES = 1000
# What an interruption may cost, for a chunk is in the catalogue as a whole.
_BYTES = 64 * 1024**3
# A grant lasts as long as a slow line needs.
_LEAST_SECONDS, _BYTES_PER_SECOND = 3600, 2 * 1024**2


@dataclass(frozen=True, slots=True)
class Wish:
    """What is wanted of all files of a put."""

    storage_elements: Sequence[str] = ()
    datasets: Sequence[str] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    # Names that are to be taken over from other files, and why.
    replaced: Collection[str] = ()
    reason: str = ""


class Uploads:
    """Brings files in."""

    def __init__(self, connection: Connection, known: KnownChecksums) -> None:
        self._connection = connection
        self._known = known

    async def put(
        self, pairs: Sequence[Pair], wish: Wish, progress: Progress, on_file: Progress = nothing
    ) -> list[Any]:
        """Bring files in; all of a chunk are in the catalogue together, or none. Returns CommittedFile messages."""
        committed: list[Any] = []
        with Workers(progress) as workers:
            for part, total in _chunks(pairs):
                committed += await self._put(part, total, wish, workers)
                on_file(len(part))
        return committed

    async def _put(self, pairs: Sequence[Pair], total: int, wish: Wish, workers: Workers) -> list[Any]:
        upload = await self._open(pairs, total, wish)
        try:
            stamps = [stamp_of(pair.path) for pair in pairs]
            numbered = list(enumerate(pairs))
            results = await workers.each(
                lambda item: send(item[1].path, upload.grant, item[0], workers.connections, workers.progress), numbered
            )
            sent = _all_sent(results)
            answer = await self._commit(upload.name, pairs, sent, wish)
        except BaseException:
            await self._abandon(upload.name)
            raise
        self._remember(pairs, stamps, sent)
        return list(answer.files)

    async def _open(self, pairs: Sequence[Pair], total: int, wish: Wish) -> Any:
        from khomas.api.storage.v1 import grant_pb2
        from khomas.api.storage.v1 import storage_service_pb2 as pb

        wanted = grant_pb2.Upload(storage_elements=wish.storage_elements, max_files=len(pairs), reserve_bytes=total)
        lifetime = Duration(seconds=_LEAST_SECONDS + total // _BYTES_PER_SECOND)
        request = pb.BatchCreateUploadsRequest(uploads=[wanted], lifetime=lifetime, request_id=str(uuid4()))
        (upload,) = (await self._connection.call("storage", "BatchCreateUploads", request)).uploads
        return upload

    async def _commit(self, upload: str, pairs: Sequence[Pair], sent: Sequence[Sent], wish: Wish) -> Any:
        from khomas.api.storage.v1 import storage_service_pb2 as pb

        commit = pb.BatchCommitUploadsRequest(request_id=str(uuid4()))
        for index, (pair, one_sent) in enumerate(zip(pairs, sent, strict=True)):
            one = commit.files.add(upload=upload, index=index, name=pair.name, size_bytes=one_sent.size)
            one.checksums.adler32 = one_sent.adler32
            one.datasets.extend(dataset_name(name) for name in wish.datasets)
            for key, value in wish.metadata.items():
                one.metadata[key].CopyFrom(as_value(value))
        replaced = [pair.name for pair in pairs if pair.name in wish.replaced]
        await self._make_way(replaced, wish.reason)
        return await self._connection.call("storage", "BatchCommitUploads", commit, timeout=_COMMIT_SECONDS)

    async def _make_way(self, names: Sequence[str], reason: str) -> None:
        """Delete for good what has the names, once everything that takes its place has arrived.

        A name is free when the storage has confirmed that the bytes are gone; what can be undone would keep it.
        """
        from khomas.api.catalog.v1 import catalog_service_pb2 as pb
        from khomas.api.catalog.v1.file_pb2 import File

        if not names:
            return
        request = pb.BatchDeleteFilesRequest(
            names=names, reason=reason, undo_window=Duration(), request_id=str(uuid4())
        )
        gone = (await self._connection.call("catalog", "BatchDeleteFiles", request)).files
        look = pb.BatchGetFilesRequest(names=[f"files/{file.uid}" for file in gone], view=pb.FILE_VIEW_BASIC)
        end = time.monotonic() + _DELETION_SECONDS
        while time.monotonic() < end:
            results = (await self._connection.call("catalog", "BatchGetFiles", look)).results
            if all(one.file.state == File.STATE_DELETED for one in results if one.HasField("file")):
                return
            await asyncio.sleep(_LOOK_SECONDS)
        message = f"{names[0]} and others are still being deleted by the storage; repeat the command later"
        raise KhomasError(message, "DELETION_STARTED", exit_code=TIMED_OUT)

    async def _abandon(self, name: str) -> None:
        from khomas.api.storage.v1 import storage_service_pb2 as pb

        request = pb.BatchAbandonUploadsRequest(names=[name], request_id=str(uuid4()))
        try:
            await self._connection.call("storage", "BatchAbandonUploads", request, timeout=10)
        except KhomasError:
            return  # it expires by itself

    def _remember(self, pairs: Sequence[Pair], stamps: Sequence[Stamp | None], sent: Sequence[Sent]) -> None:
        read = zip(pairs, stamps, sent, strict=True)
        self._known.remember((pair.path, stamp, one.adler32) for pair, stamp, one in read if is_settled(stamp))


def _all_sent(results: Sequence[Sent | KhomasError]) -> list[Sent]:
    if (failure := first_failure(results)) is not None:
        raise failure
    return [result for result in results if isinstance(result, Sent)]


def _chunks(pairs: Sequence[Pair]) -> Iterator[tuple[list[Pair], int]]:
    """Cut a list by number and by bytes; with the bytes of each part."""
    part: list[Pair] = []
    total = 0
    for pair in pairs:
        size = pair.path.stat().st_size
        if part and (len(part) >= _FILES or total + size > _BYTES):
            yield part, total
            part, total = [], 0
        part.append(pair)
        total += size
    if part:
        yield part, total
