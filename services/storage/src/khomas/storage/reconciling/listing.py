"""Lists all files of a storage as they come, some folders at once."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Final

from khomas.storage.paths import PRIVATE
from khomas.storage.protocols.interface import Entry, Kind, Problem, ProtocolFault, StorageProtocol

_AT_ONCE: Final = 4
_TRIES: Final = 3
_PAUSE_SECONDS: Final = 1.0
_PASSING: Final = frozenset({Problem.PASSING, Problem.UNREACHABLE})


async def files_of(protocol: StorageProtocol, *, follow: bool) -> AsyncGenerator[Sequence[Entry], None]:
    """Yield all files outside the private folder, in no order, perhaps some of them twice.

    Raises the ProtocolFault of a folder that cannot be listed: nothing is to be concluded from a part. Links to folders
    are followed only when told to, and never round and round.
    """
    walk = _Walk(protocol, follow=follow)
    working = asyncio.create_task(walk.run())
    try:
        while (page := await walk.pages.get()) is not None:
            yield page
        await working
    finally:
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError, ProtocolFault):
            await working


class _Walk:
    """A stack of folders that some workers take from: depth first, so that it stays short."""

    def __init__(self, protocol: StorageProtocol, *, follow: bool) -> None:
        self.pages: asyncio.Queue[Sequence[Entry] | None] = asyncio.Queue(_AT_ONCE)
        self._protocol = protocol
        self._follow = follow
        self._folders = [""]
        self._busy = 0
        self._changed = asyncio.Condition()

    async def run(self) -> None:
        workers = [asyncio.create_task(self._worker()) for _ in range(_AT_ONCE)]
        try:
            await asyncio.gather(*workers)
            await self.pages.put(None)
        except BaseException:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            # Nobody needs what is there any more, and nobody may make room for the end.
            while not self.pages.empty():
                self.pages.get_nowait()
            self.pages.put_nowait(None)
            raise

    async def _worker(self) -> None:
        while (folder := await self._next()) is not None:
            try:
                await self._listed(folder)
            finally:
                async with self._changed:
                    self._busy -= 1
                    self._changed.notify_all()

    async def _next(self) -> str | None:
        """Return a folder; None when there is none, and nobody is left who could find one."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._folders or not self._busy)
            if not self._folders:
                return None
            self._busy += 1
            return self._folders.pop()

    async def _listed(self, folder: str) -> None:
        if folder and self._protocol.abilities.local and not await asyncio.to_thread(self._enters, folder):
            return
        for left in reversed(range(_TRIES)):
            fault = await self._pages_of(folder)
            # One that is absent was removed since its parent was listed.
            if fault is None or (folder and fault.problem is Problem.ABSENT):
                return
            if not left or fault.problem not in _PASSING:
                raise ProtocolFault(fault.problem, f"{folder or '/'} cannot be listed: {fault.message}")
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _pages_of(self, folder: str) -> ProtocolFault | None:
        try:
            async with aclosing(self._protocol.entries(folder)) as pages:
                async for page in pages:
                    await self._take(page)
        except ProtocolFault as fault:
            return fault
        return None

    async def _take(self, page: Sequence[Entry]) -> None:
        if folders := [one.path for one in page if one.kind is Kind.FOLDER and one.path != PRIVATE]:
            async with self._changed:
                self._folders.extend(folders)
                self._changed.notify_all()
        if files := [one for one in page if one.kind is Kind.FILE]:
            await self.pages.put(files)

    def _enters(self, folder: str) -> bool:
        """Tell whether a folder is to be walked: no link that is not followed, none to a folder above it."""
        try:
            path = self._protocol.local_path(folder)
        except ProtocolFault:
            # A link that leads out of the storage.
            return False
        if path is None or not path.is_symlink():
            return True
        return self._follow and not path.parent.resolve().is_relative_to(_resolved(path))


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        return path
