"""Writing: PUT into the staging folder of an upload, under a hidden name until all has arrived."""

import asyncio
import re
import uuid
from concurrent.futures import Executor
from pathlib import Path

from aiohttp import web

from khomas.storage import paths, staging
from khomas.storage.checksums import Summing
from khomas.storage.door.downloads import PlainFile
from khomas.storage.door.receiving import discarded, receive
from khomas.storage.elements import Protocols
from khomas.storage.errors import PathNotFound
from khomas.storage.uploads import Uploads

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
        summing = Summing(sha256=True)
        async with discarded(hidden):
            await receive(request.content, hidden, summing.add, self._executor)
            sums = summing.sums
            announced = _DIGEST.search(request.headers.get("Digest", ""))
            if announced is not None and announced[1].lower().zfill(8) != sums.adler32:
                message = f"arrived with adler32 {sums.adler32}, announced was {announced[1]}"
                return web.json_response({"reason": "CHECKSUM_MISMATCH", "message": message}, status=422)
            stamp = await asyncio.to_thread(_publish, hidden, target)
        index = int(target.name)
        await self._uploads.received(request.match_info["upload"], index, sums, stamp)
        body = {"index": index, "size_bytes": sums.size_bytes, "adler32": sums.adler32, "sha256": sums.sha256}
        return web.json_response(body, status=201, headers={"Digest": f"adler32={sums.adler32}"})

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Give back what has arrived."""
        return PlainFile(await self._arrived(request), {})

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


def _publish(hidden: Path, target: Path) -> str:
    hidden.replace(target)
    return staging.stamp_of(target)
