"""Writing: PUT into the staging folder of an upload, under a hidden name until all has arrived."""

import asyncio
import os
import re
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Final

from aiohttp import web

from khomas.storage import paths, staging
from khomas.storage.checksums import Summing, Sums
from khomas.storage.door.downloads import PlainFile
from khomas.storage.elements import Protocols
from khomas.storage.errors import PathNotFound
from khomas.storage.uploads import Uploads

# What is gathered before a thread writes and sums it.
_GATHER: Final = 1024 * 1024
_DIGEST = re.compile(r"adler32=([0-9a-f]{1,8})", re.IGNORECASE)


class Writing:
    """Takes the files of uploads."""

    def __init__(self, uploads: Uploads, protocols: Protocols, executor: Executor) -> None:
        self._uploads = uploads
        self._protocols = protocols
        self._executor = executor

    async def put(self, request: web.Request) -> web.StreamResponse:
        """Take one file; again replaces it. Cut off or different from its Digest, nothing of it stays."""
        target = await self._target(request)
        hidden = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            sums = await self._write(request, hidden)
            announced = _DIGEST.search(request.headers.get("Digest", ""))
            if announced is not None and announced[1].lower().zfill(8) != sums.adler32:
                message = f"arrived with adler32 {sums.adler32}, announced was {announced[1]}"
                return web.json_response({"reason": "CHECKSUM_MISMATCH", "message": message}, status=422)
            stamp = await asyncio.to_thread(_publish, hidden, target)
        finally:
            await asyncio.shield(asyncio.to_thread(hidden.unlink, missing_ok=True))
        index = int(target.name)
        await self._uploads.received(request.match_info["upload"], index, sums, stamp)
        body = {"index": index, "size_bytes": sums.size_bytes, "adler32": sums.adler32, "sha256": sums.sha256}
        return web.json_response(body, status=201, headers={"Digest": f"adler32={sums.adler32}"})

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Give back what has arrived."""
        return PlainFile(await self._arrived(request), "")

    async def delete(self, request: web.Request) -> web.StreamResponse:
        """Take one file away again."""
        target = await self._arrived(request)
        await self._uploads.forgotten(request.match_info["upload"], int(target.name))
        await asyncio.to_thread(target.unlink, missing_ok=True)
        return web.Response(status=204)

    async def _arrived(self, request: web.Request) -> Path:
        target = await self._target(request)
        if not await asyncio.to_thread(target.is_file):
            raise PathNotFound(storage_element="upload", path=target.name)
        return target

    async def _target(self, request: web.Request) -> Path:
        uid, index = request.match_info["upload"], int(request.match_info["index"])
        row, element = await self._uploads.receiver(uid)
        if index >= row.max_files:
            raise PathNotFound(f"The upload takes files 0 to {row.max_files - 1}.")
        return self._protocols.local(element, paths.staging(uid, index))

    async def _write(self, request: web.Request, hidden: Path) -> Sums:
        """Write the body; one piece is written and summed by a thread while the next one arrives."""
        loop = asyncio.get_running_loop()
        writer = await loop.run_in_executor(self._executor, _Writer, hidden)
        busy: asyncio.Future[None] | None = None
        try:
            async for piece in _gathered(request):
                if busy is not None:
                    await busy
                busy = loop.run_in_executor(self._executor, writer.take, piece)
            if busy is not None:
                await busy
        finally:
            if busy is not None:
                await asyncio.wait([busy])
            await loop.run_in_executor(self._executor, writer.close)
        return writer.sums


class _Writer:
    """Writes and sums; for one thread at a time."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._summing = Summing(sha256=True)

    def take(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            view = memoryview(piece)
            while view:
                view = view[os.write(self._descriptor, view) :]
            self._summing.add(piece)

    def close(self) -> None:
        os.close(self._descriptor)

    @property
    def sums(self) -> Sums:
        return self._summing.sums


async def _gathered(request: web.Request) -> AsyncIterator[list[bytes]]:
    pieces: list[bytes] = []
    size = 0
    async for piece in request.content.iter_any():
        pieces.append(piece)
        size += len(piece)
        if size >= _GATHER:
            yield pieces
            pieces, size = [], 0
    if pieces:
        yield pieces


def _publish(hidden: Path, target: Path) -> str:
    hidden.replace(target)
    return staging.stamp_of(target)
