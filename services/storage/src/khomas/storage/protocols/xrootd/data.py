"""Bytes of open files, with several requests on their way at once."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from XRootD import client

from khomas.storage.protocols.blocks import as_bytes
from khomas.storage.protocols.interface import Problem, ProtocolFault
from khomas.storage.protocols.xrootd.library import Start, call

_PIECE: Final = 2 * 1024 * 1024
_AT_ONCE: Final = 6
_CLOSING_SECONDS: Final = 10.0
# Files that are still being closed after whoever used them went away.
_LEFT: set[asyncio.Task[None]] = set()


class OpenFile:
    """A file that is open on a server."""

    def __init__(self, file: Any, seconds: float) -> None:
        self._file = file
        self._seconds = seconds
        self._busy: set[asyncio.Task[Any]] = set()

    def read(self, start: int, size: int) -> asyncio.Task[bytes]:
        """Ask for a part."""
        return self._begun(self._file.read, start, size)

    def write(self, data: bytes, start: int) -> asyncio.Task[None]:
        """Send a part."""
        return self._begun(self._file.write, data, start, len(data))

    async def sync(self, seconds: float | None = None) -> None:
        """Wait until the server has everything on its disk; of a third-party copy, take the next step."""
        await asyncio.shield(self._begun(self._file.sync, seconds=seconds))

    async def size(self) -> int:
        """Return what the server told when it was opened."""
        found = await asyncio.shield(self._begun(self._file.stat, False))
        return int(found.size)

    async def end(self) -> None:
        """Close it, after everything that is under way: the library refuses to do so before."""
        await asyncio.gather(*self._busy, return_exceptions=True)
        if self._file.is_open():
            await call(self._file.close, seconds=_CLOSING_SECONDS)

    def _begun(self, start: Start, *arguments: Any, seconds: float | None = None) -> asyncio.Task[Any]:
        task = asyncio.create_task(call(start, *arguments, seconds=seconds or self._seconds))
        self._busy.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._busy.discard(task)
        # Who has gone away does not ask how it ended.
        if not task.cancelled():
            task.exception()


@asynccontextmanager
async def opened(url: str, flags: int, mode: int, seconds: float) -> AsyncIterator[OpenFile]:
    """Open a file, and leave none open on the server; how closing ends counts only if nothing went wrong before."""
    file = client.File()
    # What is broken is told, not mended: whoever began knows whether to begin again.
    file.set_property("ReadRecovery", "false")
    file.set_property("WriteRecovery", "false")
    opening = asyncio.create_task(call(file.open, url, flags, mode, seconds=seconds))
    open_file = OpenFile(file, seconds)
    try:
        await asyncio.shield(opening)
        yield open_file
    except BaseException:
        await asyncio.wait([_ended(opening, open_file)], timeout=_CLOSING_SECONDS)
        raise
    await asyncio.shield(_ended(opening, open_file))


def _ended(opening: asyncio.Task[Any], file: OpenFile) -> asyncio.Task[None]:
    async def end() -> None:
        await asyncio.wait([opening])
        await file.end()

    def done(task: asyncio.Task[None]) -> None:
        _LEFT.discard(task)
        if not task.cancelled():
            task.exception()

    task = asyncio.create_task(end())
    _LEFT.add(task)
    task.add_done_callback(done)
    return task


async def pieces(file: OpenFile, start: int, end: int) -> AsyncGenerator[memoryview, None]:
    """Yield a part of a file in order; raise PASSING if it ends earlier."""
    asked: deque[tuple[int, asyncio.Task[bytes]]] = deque()
    position = start
    while position < end or asked:
        while position < end and len(asked) < _AT_ONCE:
            size = min(_PIECE, end - position)
            asked.append((size, file.read(position, size)))
            position += size
        size, reading = asked.popleft()
        await asyncio.wait([reading])
        data = reading.result()
        if len(data) < size:
            raise ProtocolFault(Problem.PASSING, "the file ended early, it was longer before")
        yield memoryview(data)


class Writing:
    """Writes blocks one behind the other."""

    def __init__(self, file: OpenFile) -> None:
        self._file = file
        self._position = 0
        self._sent: deque[asyncio.Task[None]] = deque()

    async def add(self, block: memoryview) -> None:
        """Send a block, as soon as little enough is on its way."""
        for start in range(0, len(block), _PIECE):
            while len(self._sent) >= _AT_ONCE:
                await self._answer()
            data = as_bytes(block[start : start + _PIECE])
            self._sent.append(self._file.write(data, self._position))
            self._position += len(data)

    async def end(self) -> None:
        """Wait until all is written."""
        while self._sent:
            await self._answer()

    async def _answer(self) -> None:
        await asyncio.wait([self._sent[0]])
        self._sent.popleft().result()
