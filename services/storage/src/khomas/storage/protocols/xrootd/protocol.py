"""The protocol `root`: what the conformance suite wants, of XRootD servers."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final, TypeVar

from XRootD.client.flags import AccessMode, DirListFlags, MkDirFlags, OpenFlags, QueryCode

from khomas.kit.credentials import CredentialProvider
from khomas.storage.checksums import Algorithm
from khomas.storage.protocols.interface import (
    Abilities,
    Digest,
    Entry,
    Kind,
    Problem,
    ProtocolFault,
    Room,
)
from khomas.storage.protocols.many import each
from khomas.storage.protocols.xrootd.answers import digest_of, entry_of, room_of
from khomas.storage.protocols.xrootd.copies import RootCopies
from khomas.storage.protocols.xrootd.data import Writing, opened, pieces
from khomas.storage.protocols.xrootd.login import Ticket
from khomas.storage.protocols.xrootd.server import Server
from khomas.storage.protocols.xrootd.settings import Place, XrootdSettings
from khomas.storage.protocols.xrootd.tape import RootTape

Item = TypeVar("Item")
Result = TypeVar("Result")

_FILE: Final = AccessMode.UR | AccessMode.UW | AccessMode.GR | AccessMode.OR
_FOLDER: Final = _FILE | AccessMode.UX | AccessMode.GX | AccessMode.OX
_ALGORITHMS: Final = (Algorithm.ADLER32, Algorithm.MD5)
# Until the library gives up by itself, which it says better than we.
_PATIENCE: Final = 15.0


class XrootdProtocol:
    """A StorageElement that is a folder of an XRootD server."""

    # It renames over what is there.
    abilities = Abilities(checksums=_ALGORITHMS)

    def __init__(
        self,
        place: Place,
        settings: XrootdSettings,
        credential: CredentialProvider | None,
        *,
        durable: bool = False,
    ) -> None:
        self._server = Server(place, settings, credential)
        self._settings = settings
        self._durable = durable
        self._checksums = asyncio.Semaphore(settings.checksums)
        self.third_party = RootCopies(self._server)
        self.tape = RootTape(self._server) if settings.tape else None

    async def space(self) -> Room:
        """Ask for the space below the root."""
        async with self._rooted() as ticket:
            await self._server.do(ticket, "stat", self._on(ticket, ""))
            try:
                return room_of(await self._server.query(ticket, QueryCode.SPACE, self._on(ticket, "")))
            except ProtocolFault as fault:
                if fault.problem not in (Problem.UNSUPPORTED, Problem.REFUSED):
                    raise
                return Room(None, None)

    async def stat(self, paths: Sequence[str]) -> list[Entry | ProtocolFault]:
        """Look at files and folders."""
        return await self._each(self._stat, paths)

    async def entries(self, folder: str) -> AsyncGenerator[Sequence[Entry], None]:
        """List a folder, as much at once as the server gives."""
        prefix = f"{folder}/" if folder else ""
        async with self._rooted() as ticket:
            flags = DirListFlags.STAT | DirListFlags.CHUNKED
            async with aclosing(self._server.listing(ticket, folder, flags)) as listing:
                async for part in listing:
                    # What has vanished meanwhile has no attributes.
                    yield [entry_of(prefix + one.name, one.statinfo) for one in part if one.statinfo is not None]

    async def checksum(self, paths: Sequence[str], algorithm: Algorithm) -> list[Digest | ProtocolFault]:
        """Ask for checksums."""
        if algorithm not in _ALGORITHMS:
            return [ProtocolFault(Problem.UNSUPPORTED, f"XRootD has no {algorithm}") for _ in paths]
        seconds = self._settings.checksum_seconds

        async def one(ticket: Ticket, path: str) -> Digest:
            wanted = ticket.on(self._server.place.at(path), f"cks.type={algorithm}")
            async with self._checksums:
                answer = await self._server.query(ticket, QueryCode.CHECKSUM, wanted, seconds)
            return digest_of(answer, algorithm)

        return await self._each(one, paths, seconds=seconds)

    async def delete(self, paths: Sequence[str]) -> list[ProtocolFault | None]:
        """Remove files."""
        done = await self._each(self._delete, paths)
        return [None if _is_absent(fault) else fault for fault in done]

    async def make_folders(self, paths: Sequence[str]) -> list[ProtocolFault | None]:
        """Make folders with those above them."""
        return await self._each(self._make_folder, paths)

    async def rename(self, pairs: Sequence[tuple[str, str]]) -> list[ProtocolFault | None]:
        """Give files other names."""
        return await self._each(self._rename, pairs)

    async def get(self, path: str, start: int = 0, size_bytes: int | None = None) -> AsyncGenerator[memoryview, None]:
        """Read with several requests on their way."""
        async with self._rooted() as ticket:
            url = self._server.url(ticket, path)
            async with opened(url, OpenFlags.READ, AccessMode.NONE, self._settings.idle_seconds) as file:
                size = await file.size()
                end = size if size_bytes is None else min(size, start + size_bytes)
                async with aclosing(pieces(file, start, end)) as found:
                    async for piece in found:
                        yield piece

    async def put(self, path: str, blocks: AsyncIterator[memoryview], size_bytes: int) -> None:
        """Write with several requests on their way."""
        async with self._rooted() as ticket:
            # Servers choose a disk by the size that is announced.
            url = self._server.url(ticket, path, f"oss.asize={size_bytes}")
            async with opened(url, OpenFlags.NEW, _FILE, self._settings.idle_seconds) as file:
                writing = Writing(file)
                async for block in blocks:
                    await writing.add(block)
                await writing.end()
                if self._durable:
                    await file.sync()

    def local_path(self, path: str) -> None:
        """Return nothing: it is elsewhere."""

    async def close(self) -> None:
        """Do nothing: connections are the library's, and shared by all that speak to the same server."""

    # -------------------------------------------------------------------------------------------- single ones

    def _on(self, ticket: Ticket, path: str) -> str:
        return ticket.on(self._server.place.at(path))

    async def _stat(self, ticket: Ticket, path: str) -> Entry:
        return entry_of(path, await self._server.do(ticket, "stat", self._on(ticket, path)))

    async def _delete(self, ticket: Ticket, path: str) -> None:
        await self._server.do(ticket, "rm", self._on(ticket, path))

    async def _make_folder(self, ticket: Ticket, path: str) -> None:
        try:
            await self._server.do(ticket, "mkdir", self._on(ticket, path), MkDirFlags.MAKEPATH, _FOLDER)
        except ProtocolFault as fault:
            if fault.problem is not Problem.TAKEN or (await self._stat(ticket, path)).kind is not Kind.FOLDER:
                raise

    async def _rename(self, ticket: Ticket, pair: tuple[str, str]) -> None:
        try:
            await self._stat(ticket, pair[1])
        except ProtocolFault as fault:
            if fault.problem is not Problem.ABSENT:
                raise
        else:
            raise ProtocolFault(Problem.TAKEN, f"there is a {pair[1]} already")
        await self._server.do(ticket, "mv", self._on(ticket, pair[0]), self._on(ticket, pair[1]))

    # ------------------------------------------------------------------------------------------------- the root

    @asynccontextmanager
    async def _rooted(self) -> AsyncIterator[Ticket]:
        """Turn what is absent into UNREACHABLE when the root is: a disk that is not mounted has lost no files."""
        ticket = await self._server.ticket()
        try:
            yield ticket
        except ProtocolFault as fault:
            if fault.problem is Problem.ABSENT and (missing := await self._missing_root(ticket)) is not None:
                raise missing from fault
            raise

    async def _missing_root(self, ticket: Ticket) -> ProtocolFault | None:
        try:
            await self._server.do(ticket, "stat", self._on(ticket, ""))
        except ProtocolFault as fault:
            if fault.problem is not Problem.ABSENT:
                return fault
            root = self._server.place.at("")
            return ProtocolFault(Problem.UNREACHABLE, f"there is no folder {root} on {self._server.place}")
        return None

    async def _each(
        self,
        action: Callable[[Ticket, Item], Awaitable[Result]],
        items: Sequence[Item],
        *,
        seconds: float | None = None,
    ) -> list[Result | ProtocolFault]:
        if not items:
            return []
        try:
            ticket = await self._server.ticket()
        except ProtocolFault as fault:
            return [fault for _ in items]

        async def one(item: Item) -> Result:
            return await action(ticket, item)

        patience = (seconds or self._settings.seconds) * 2 + _PATIENCE
        done = await each(one, items, at_once=self._settings.requests, seconds=patience)
        if not any(map(_is_absent, done)) or (missing := await self._missing_root(ticket)) is None:
            return done
        return [missing if _is_absent(result) else result for result in done]


def _is_absent(result: Any) -> bool:
    return isinstance(result, ProtocolFault) and result.problem is Problem.ABSENT
