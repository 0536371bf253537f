"""Writing through the door to a storage that is elsewhere: the bytes pass, and lie there verified but hidden."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import StreamReader, web

from khomas.storage import elsewhere
from khomas.storage.door.relaying import relayed
from khomas.storage.errors import PathNotFound
from khomas.storage.landing import Landings, SourceDiffers, SourceFailed, Wanted
from khomas.storage.protocols.interface import Problem, ProtocolFault, StorageProtocol
from khomas.storage.uploads.uploads import Uploads

_BLOCK: Final = 1024 * 1024
_SIGN_OF_LIFE_SECONDS: Final = 5.0


class Passing:
    """Takes files of uploads for other storages."""

    def __init__(self, uploads: Uploads) -> None:
        self._uploads = uploads
        self._landings = Landings()

    async def put(
        self, request: web.Request, protocol: StorageProtocol, uid: str, index: int, adler32: str
    ) -> web.StreamResponse:
        """Take one file; again replaces it. Cut off or different from its Digest, nothing of it stays."""
        if request.content_length is None:
            raise web.HTTPLengthRequired
        wanted = Wanted(request.content_length, adler32)
        try:
            async with _signs_of_life(request):
                staged, sums = await elsewhere.stage(self._landings, protocol, _blocks(request.content), wanted)
        except SourceDiffers as error:
            return web.json_response({"reason": "CHECKSUM_MISMATCH", "message": str(error)}, status=422)
        except SourceFailed as error:
            return web.json_response({"reason": "UPLOAD_INCOMPLETE", "message": str(error)}, status=400)
        old = await self._uploads.stamp(uid, index)
        await self._uploads.received(uid, index, sums, staged)
        if old is not None:
            await elsewhere.remove(protocol, [old])
        body = {"index": index, "size_bytes": sums.size_bytes, "adler32": sums.adler32, "sha256": sums.sha256}
        return web.json_response(body, status=201, headers={"Digest": f"adler32={sums.adler32}"})

    async def get(self, request: web.Request, protocol: StorageProtocol, uid: str, index: int) -> web.StreamResponse:
        """Give back what has arrived."""
        return await relayed(request, protocol, await self._arrived(uid, index), "")

    async def delete(self, protocol: StorageProtocol, uid: str, index: int) -> web.StreamResponse:
        """Take one file away again."""
        staged = await self._arrived(uid, index)
        await self._uploads.forgotten(uid, index)
        await elsewhere.remove(protocol, [staged])
        return web.Response(status=204)

    async def _arrived(self, uid: str, index: int) -> str:
        staged = await self._uploads.stamp(uid, index)
        if staged is None:
            raise PathNotFound(storage_element="upload", path=str(index))
        return staged


@asynccontextmanager
async def _signs_of_life(request: web.Request) -> AsyncIterator[None]:
    """Keep the sender waiting while what it has sent is read back, which takes long where the file is large.

    Every client must bear answers that are not yet the last one.
    """

    async def tell() -> None:
        while True:
            await asyncio.sleep(_SIGN_OF_LIFE_SECONDS)
            if request.content.is_eof():
                await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                # Only what is written now belongs to the answer.
                request.writer.output_size = 0

    telling = asyncio.create_task(tell())
    try:
        yield
    finally:
        telling.cancel()
        await asyncio.wait([telling])


async def _blocks(content: StreamReader) -> AsyncGenerator[memoryview, None]:
    gathered = bytearray()
    try:
        async for piece in content.iter_any():
            gathered += piece
            if len(gathered) >= _BLOCK:
                yield memoryview(gathered)
                gathered = bytearray()
    except (OSError, web.RequestPayloadError) as error:
        raise ProtocolFault(Problem.PASSING, f"the sender has gone: {error}") from error
    if gathered:
        yield memoryview(gathered)
