"""Bytes that come in: written and summed by a thread while the next ones arrive, under a hidden name."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from aiohttp import StreamReader

# What is gathered before a thread writes and sums it.
_GATHER: Final = 1024 * 1024


@asynccontextmanager
async def discarded(hidden: Path) -> AsyncIterator[None]:
    """Leave nothing under a hidden name, whatever happens."""
    try:
        yield
    finally:
        await asyncio.shield(asyncio.to_thread(hidden.unlink, missing_ok=True))


async def receive(
    content: StreamReader, hidden: Path, add: Callable[[bytes], None], executor: Executor, *, flush: bool = False
) -> None:
    """Write all that comes to a new file; `add` is given the bytes in order."""
    loop = asyncio.get_running_loop()
    writer = await loop.run_in_executor(executor, _Writer, hidden, add)
    busy: asyncio.Future[None] | None = None
    try:
        async for pieces in _gathered(content):
            if busy is not None:
                await busy
            busy = loop.run_in_executor(executor, writer.take, pieces)
        if busy is not None:
            await busy
        if flush:
            await loop.run_in_executor(executor, writer.flush)
    finally:
        if busy is not None:
            await asyncio.wait([busy])
        await loop.run_in_executor(executor, writer.close)


class _Writer:
    """Writes and sums; for one thread at a time."""

    def __init__(self, path: Path, add: Callable[[bytes], None]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._add = add

    def take(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            view = memoryview(piece)
            while view:
                view = view[os.write(self._descriptor, view) :]
            self._add(piece)

    def flush(self) -> None:
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


async def _gathered(content: StreamReader) -> AsyncIterator[list[bytes]]:
    pieces: list[bytes] = []
    size = 0
    async for piece in content.iter_any():
        pieces.append(piece)
        size += len(piece)
        if size >= _GATHER:
            yield pieces
            pieces, size = [], 0
    if pieces:
        yield pieces
