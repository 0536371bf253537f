"""Writing: PUT into the staging folder of an upload, under a hidden name until all has arrived."""

import asyncio
import re
import uuid
from concurrent.futures import Executor
from pathlib import Path

from aiohttp import web

from khomas.storage import paths
from khomas.storage.checksums import Summing
from khomas.storage.door.downloads import PlainFile
from khomas.storage.door.elsewhere import Passing
from khomas.storage.door.receiving import discarded, receive
from khomas.storage.elements.elements import Element, Protocols
from khomas.storage.errors import PathNotFound
from khomas.storage.uploads import staging
from khomas.storage.uploads.uploads import Uploads

_DIGEST = re.compile(r"adler32=([0-9a-f]{1,8})", re.IGNORECASE)


class Writing:
    """Takes the files of uploads."""

    def __init__(self, uploads: Uploads, protocols: Protocols, executor: Executor) -> None:
        self._uploads = uploads
        self._protocols = protocols
        self._executor = executor
        self._passing = Passing(uploads)

    async def put(self, request: web.Request) -> web.StreamResponse:
        """Take one file; again replaces it. Cut off or different from its Digest, nothing of it stays."""
        element, uid, index = await self._asked(request)
        if not self._protocols.is_local(element):
            return await self._passing.put(request, self._protocols.of(element), uid, index, _announced(request))
        target = self._protocols.local(element, paths.staging(uid, index))
        hidden = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        summing = Summing(sha256=True)
        async with discarded(hidden):
            await receive(request.content, hidden, summing.add, self._executor)
            sums = summing.sums
            if (announced := _announced(request)) not in ("", sums.adler32):
                message = f"arrived with adler32 {sums.adler32}, announced was {announced}"
                return web.json_response({"reason": "CHECKSUM_MISMATCH", "message": message}, status=422)
            stamp = await asyncio.to_thread(_publish, hidden, target)
        await self._uploads.received(uid, index, sums, stamp)
        body = {"index": index, "size_bytes": sums.size_bytes, "adler32": sums.adler32, "sha256": sums.sha256}
        return web.json_response(body, status=201, headers={"Digest": f"adler32={sums.adler32}"})

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Give back what has arrived."""
        element, uid, index = await self._asked(request)
        if not self._protocols.is_local(element):
            return await self._passing.get(request, self._protocols.of(element), uid, index)
        return PlainFile(await self._arrived(element, uid, index), {})

    async def delete(self, request: web.Request) -> web.StreamResponse:
        """Take one file away again."""
        element, uid, index = await self._asked(request)
        if not self._protocols.is_local(element):
            return await self._passing.delete(self._protocols.of(element), uid, index)
        target = await self._arrived(element, uid, index)
        await self._uploads.forgotten(uid, index)
        await asyncio.to_thread(target.unlink, missing_ok=True)
        return web.Response(status=204)

    async def _arrived(self, element: Element, uid: str, index: int) -> Path:
        target = self._protocols.local(element, paths.staging(uid, index))
        if not await asyncio.to_thread(target.is_file):
            raise PathNotFound(storage_element="upload", path=target.name)
        return target

    async def _asked(self, request: web.Request) -> tuple[Element, str, int]:
        uid, index = request.match_info["upload"], int(request.match_info["index"])
        row, element = await self._uploads.receiver(uid)
        if index >= row.max_files:
            raise PathNotFound(f"The upload takes files 0 to {row.max_files - 1}.")
        return element, uid, index


def _announced(request: web.Request) -> str:
    """Return the checksum that the sender announces, or nothing."""
    found = _DIGEST.search(request.headers.get("Digest", ""))
    return found[1].lower().zfill(8) if found is not None else ""


def _publish(hidden: Path, target: Path) -> str:
    hidden.replace(target)
    return staging.stamp_of(target)
