"""Bytes of open files, with many requests on their way at once."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeAlias

import asyncssh

from khomas.storage.protocols.blocks import as_bytes
from khomas.storage.protocols.interface import Problem, ProtocolFault

File: TypeAlias = asyncssh.SFTPClientFile

# Of one file, on their way at once: the connection stays busy over distances of 100 ms at 80 MB/s.
_ON_THE_WAY: Final = 8 * 1024 * 1024
_REQUESTS: Final = 128
# OpenSSH takes little less, others say that they take megabytes.
_REQUEST: Final = 256 * 1024
_CLOSING_SECONDS: Final = 10.0


async def opened(
    client: asyncssh.SFTPClient, path: str, mode: str, attributes: asyncssh.SFTPAttrs | None = None
) -> File:
    """Open a file; requests are sent as they are, and not split. Cancelled, leave none open on the server."""
    opening = asyncio.ensure_future(client.open(path, mode, attributes or asyncssh.SFTPAttrs(), block_size=0))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        done, _ = await asyncio.wait([opening], timeout=_CLOSING_SECONDS)
        if done and opening.exception() is None:
            async with closing(opening.result()):
                raise
        raise


@asynccontextmanager
async def closing(file: File) -> AsyncIterator[File]:
    """Close a file; how that ends counts only if nothing went wrong before."""
    try:
        yield file
    except BaseException:
        with suppress(asyncssh.Error, OSError):
            async with asyncio.timeout(_CLOSING_SECONDS):
                await file.close()
        raise
    async with asyncio.timeout(_CLOSING_SECONDS):
        await file.close()


async def pieces(
    client: asyncssh.SFTPClient, file: File, start: int, end: int, seconds: float
) -> AsyncGenerator[memoryview, None]:
    """Yield a part of a file in order; raise PASSING if it ends earlier."""
    size = min(client.limits.max_read_len or _REQUEST, _REQUEST)
    most = max(1, min(_REQUESTS, _ON_THE_WAY // size))
    asked: deque[asyncio.Task[bytes]] = deque()
    position = start
    try:
        while position < end or asked:
            while position < end and len(asked) < most:
                asked.append(asyncio.create_task(_piece(file, position, min(size, end - position))))
                position += size
            async with asyncio.timeout(seconds):
                await asyncio.wait([asked[0]])
            yield memoryview(asked.popleft().result())
    finally:
        await _forget(asked)


async def _piece(file: File, start: int, size: int) -> bytes:
    data: bytes = await file.read(size, start)
    while len(data) < size:
        more: bytes = await file.read(size - len(data), start + len(data))
        if not more:
            raise ProtocolFault(Problem.PASSING, f"the file ended at {start + len(data)}, it was longer before")
        data += more
    return data


class Writing:
    """Writes blocks one behind the other."""

    def __init__(self, client: asyncssh.SFTPClient, file: File, seconds: float) -> None:
        self.sent_bytes = 0
        self._file = file
        self._seconds = seconds
        self._size = min(client.limits.max_write_len or _REQUEST, _REQUEST)
        self._most = max(1, min(_REQUESTS, _ON_THE_WAY // self._size))
        self._sent: deque[asyncio.Task[int]] = deque()
        self.written_bytes = 0

    async def add(self, block: memoryview) -> None:
        """Send a block, as soon as little enough is on its way."""
        for start in range(0, len(block), self._size):
            while len(self._sent) >= self._most:
                await self._answer()
            data = as_bytes(block[start : start + self._size])
            self._sent.append(asyncio.create_task(self._file.write(data, self.sent_bytes)))
            self.sent_bytes += len(data)

    async def end(self) -> None:
        """Wait until all is written."""
        while self._sent:
            await self._answer()

    async def forget(self) -> None:
        """Wait for nothing more."""
        await _forget(self._sent)

    async def _answer(self) -> None:
        async with asyncio.timeout(self._seconds):
            await asyncio.wait([self._sent[0]])
        self.written_bytes += self._sent.popleft().result()


async def _forget(tasks: Iterable[asyncio.Task[Any]]) -> None:
    for task in (tasks := list(tasks)):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
