"""The protocol `sftp`: what version 3 with the extensions of OpenSSH can do, on servers that have less as well."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Final, TypeVar, cast

import asyncssh

from khomas.storage.checksums import Algorithm
from khomas.storage.protocols.interface import (
    Abilities,
    Digest,
    Entry,
    Kind,
    Problem,
    ProtocolFault,
    Room,
    Tape,
    ThirdParty,
)
from khomas.storage.protocols.many import each
from khomas.storage.protocols.sftp.answers import entry_of
from khomas.storage.protocols.sftp.data import File, Writing, closing, opened, pieces
from khomas.storage.protocols.sftp.host import Host
from khomas.storage.protocols.sftp.settings import Place, SftpSettings

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

_PAGE: Final = 1000
# Of a larger file it is asked before whether there is room; of others it is found out soon enough.
_SMALL: Final = 4 * 1024 * 1024
# A flag of statvfs@openssh.com.
_READ_ONLY: Final = 1


class SftpProtocol:
    """A StorageElement that is a folder behind an ssh server."""

    # `rename` overwrites nothing where the server can make hard links, and not every server can. Checksums are not
    # part of what is widely spoken: bytes are read back.
    abilities = Abilities()
    third_party: ThirdParty | None = None
    tape: Tape | None = None

    def __init__(self, place: Place, host: Host, settings: SftpSettings, *, durable: bool = False) -> None:
        self._place = place
        self._host = host
        self._settings = settings
        self._durable = durable

    async def space(self) -> Room:
        """Ask for the file system, or at least for the root."""
        async with self._rooted():
            return await self._host.call(self._room)

    async def stat(self, paths: Sequence[str]) -> list[Entry | ProtocolFault]:
        """Look at files and folders."""
        return await self._each(self._stat, paths)

    async def entries(self, folder: str) -> AsyncGenerator[Sequence[Entry], None]:
        """List a folder, as much at once as the server gives."""
        async with self._rooted():
            await self._host.call(partial(self._stat, path=folder))
            async with self._host.session() as client, aclosing(_names(client, self._place.at(folder))) as names:
                while page := await self._page(client, f"{folder}/" if folder else "", names):
                    yield page

    async def checksum(self, paths: Sequence[str], algorithm: Algorithm) -> list[Digest | ProtocolFault]:
        """Tell none."""
        return [ProtocolFault(Problem.UNSUPPORTED, "SFTP tells no checksums") for _ in paths]

    async def delete(self, paths: Sequence[str]) -> list[ProtocolFault | None]:
        """Remove files."""
        done = await self._each(self._delete, paths)
        return [None if fault is not None and fault.problem is Problem.ABSENT else fault for fault in done]

    async def make_folders(self, paths: Sequence[str]) -> list[ProtocolFault | None]:
        """Make folders, from below up until there is one."""
        return await self._each(self._make_folder, paths)

    async def rename(self, pairs: Sequence[tuple[str, str]]) -> list[ProtocolFault | None]:
        """Give files other names."""
        return await self._each(self._rename, pairs, again=False)

    async def get(self, path: str, start: int = 0, size_bytes: int | None = None) -> AsyncGenerator[memoryview, None]:
        """Read with many requests on their way."""
        async with self._rooted():
            # Before it is opened: a pipe would block the server.
            found = await self._host.call(partial(self._stat, path=path))
            if found.kind is not Kind.FILE:
                raise ProtocolFault(Problem.REFUSED, f"not a regular file: {path}")
            end = found.size_bytes if size_bytes is None else min(found.size_bytes, start + size_bytes)
            if start >= end:
                return
            async with (
                self._host.session(moving=True) as client,
                closing(await opened(client, self._place.at(path), "rb")) as file,
                aclosing(pieces(client, file, start, end, self._settings.idle_seconds)) as parts,
            ):
                async for part in parts:
                    yield part

    async def put(self, path: str, blocks: AsyncIterator[memoryview], size_bytes: int) -> None:
        """Write with many requests on their way."""
        async with self._rooted():
            if size_bytes > _SMALL:
                _must_fit(await self._host.call(self._room), size_bytes)
            async with self._host.session(moving=True) as client, self._new_file(client, path) as file:
                await self._fill(client, file, blocks, size_bytes)

    def local_path(self, path: str) -> None:
        """Return nothing: it is elsewhere."""

    async def close(self) -> None:
        """End the connection."""
        await self._host.close()

    # -------------------------------------------------------------------------------------------- single ones

    async def _room(self, client: asyncssh.SFTPClient) -> Room:
        root = self._place.at("")
        try:
            found = await client.statvfs(root)
        except asyncssh.SFTPOpUnsupported:
            await client.stat(root)
            return Room(None, None)
        return Room(found.bavail * found.frsize, found.blocks * found.frsize)

    async def _stat(self, client: asyncssh.SFTPClient, path: str) -> Entry:
        return entry_of(path, await client.stat(self._place.at(path)))

    async def _page(
        self, client: asyncssh.SFTPClient, prefix: str, names: AsyncIterator[asyncssh.SFTPName]
    ) -> list[Entry]:
        found: list[Entry] = []
        async with asyncio.timeout(self._settings.idle_seconds):
            async for name in names:
                if (text := cast(str, name.filename)) not in (".", ".."):
                    found.append(await self._listed(client, prefix + text, name.attrs))
                if len(found) >= _PAGE:
                    break
        return found

    async def _listed(self, client: asyncssh.SFTPClient, path: str, attributes: asyncssh.SFTPAttrs) -> Entry:
        if attributes.type != asyncssh.FILEXFER_TYPE_SYMLINK:
            return entry_of(path, attributes)
        try:
            return await self._stat(client, path)
        except (asyncssh.SFTPNoSuchFile, asyncssh.SFTPPermissionDenied, asyncssh.SFTPFailure):
            return Entry(path, Kind.OTHER)

    async def _delete(self, client: asyncssh.SFTPClient, path: str) -> None:
        try:
            await client.remove(self._place.at(path))
        except asyncssh.SFTPFailure as error:
            if await client.isdir(self._place.at(path)):
                raise ProtocolFault(Problem.TAKEN, f"{path} is a folder") from error
            await self._must_be_writable(client, path)
            raise

    async def _make_folder(self, client: asyncssh.SFTPClient, path: str) -> None:
        try:
            await client.mkdir(self._place.at(path))
        except asyncssh.SFTPNoSuchFile:
            above = path.rpartition("/")[0]
            if not above:
                raise
            await self._make_folder(client, above)
            # Somebody else may have made it meanwhile.
            await self._make_last(client, path)
        except (asyncssh.SFTPFailure, asyncssh.SFTPPermissionDenied, asyncssh.SFTPFileAlreadyExists) as error:
            await self._must_be_folder(client, path, error)

    async def _make_last(self, client: asyncssh.SFTPClient, path: str) -> None:
        try:
            await client.mkdir(self._place.at(path))
        except (asyncssh.SFTPFailure, asyncssh.SFTPFileAlreadyExists) as error:
            await self._must_be_folder(client, path, error)

    async def _rename(self, client: asyncssh.SFTPClient, pair: tuple[str, str]) -> None:
        source, target = map(self._place.at, pair)
        try:
            # A link overwrites nothing, whatever the server thinks of renaming.
            await client.link(source, target)
        except (asyncssh.SFTPOpUnsupported, asyncssh.SFTPFailure, asyncssh.SFTPPermissionDenied):
            await self._must_be_free(client, pair[1])
            # No links there; OpenSSH and others refuse to overwrite, but two who do it at once may both be told yes.
            await self._rename_plainly(client, pair)
        else:
            await client.remove(source)

    async def _rename_plainly(self, client: asyncssh.SFTPClient, pair: tuple[str, str]) -> None:
        source, target = map(self._place.at, pair)
        try:
            await client.rename(source, target)
        except asyncssh.SFTPFailure:
            await self._must_be_free(client, pair[1])
            await self._must_be_writable(client, pair[1])
            raise

    @asynccontextmanager
    async def _new_file(self, client: asyncssh.SFTPClient, path: str) -> AsyncIterator[File]:
        try:
            file = await opened(client, self._place.at(path), "xb", asyncssh.SFTPAttrs(permissions=0o644))
        except asyncssh.SFTPFailure:
            await self._must_be_free(client, path)
            await self._must_be_writable(client, path)
            raise
        async with closing(file):
            yield file

    async def _fill(
        self,
        client: asyncssh.SFTPClient,
        file: File,
        blocks: AsyncIterator[memoryview],
        size_bytes: int,
    ) -> None:
        writing = Writing(client, file, self._settings.idle_seconds)
        try:
            async for block in blocks:
                await writing.add(block)
            await writing.end()
            if self._durable:
                await self._flush(file)
        except asyncssh.SFTPFailure:
            _must_fit(await self._room(client), max(size_bytes, writing.sent_bytes) - writing.written_bytes)
            raise
        finally:
            await writing.forget()

    async def _flush(self, file: File) -> None:
        try:
            async with asyncio.timeout(self._settings.seconds):
                await file.fsync()
        except asyncssh.SFTPOpUnsupported:
            log.warning("storage.sftp_cannot_flush", extra={"server": str(self._place)})

    # ---------------------------------------------------------------------- what "Failure" was meant to say

    async def _must_be_free(self, client: asyncssh.SFTPClient, path: str) -> None:
        if await client.lexists(self._place.at(path)):
            raise ProtocolFault(Problem.TAKEN, f"there is a {path} already")

    async def _must_be_writable(self, client: asyncssh.SFTPClient, path: str) -> None:
        try:
            found = await client.statvfs(self._place.at(path.rpartition("/")[0]))
        except asyncssh.SFTPError:
            return
        if found.flags & _READ_ONLY:
            raise ProtocolFault(Problem.REFUSED, "the file system may only be read")

    async def _must_be_folder(self, client: asyncssh.SFTPClient, path: str, error: asyncssh.SFTPError) -> None:
        try:
            found = await client.stat(self._place.at(path))
        except asyncssh.SFTPNoSuchFile:
            await self._must_be_writable(client, path)
            raise error from None
        if found.type != asyncssh.FILEXFER_TYPE_DIRECTORY:
            raise ProtocolFault(Problem.TAKEN, f"{path} is no folder") from error

    # ------------------------------------------------------------------------------------------------- the root

    @asynccontextmanager
    async def _rooted(self) -> AsyncIterator[None]:
        """Turn what is absent into UNREACHABLE when the root is: a disk that is not mounted has lost no files."""
        try:
            yield
        except ProtocolFault as fault:
            if fault.problem is Problem.ABSENT and (missing := await self._missing_root()) is not None:
                raise missing from fault
            raise

    async def _missing_root(self) -> ProtocolFault | None:
        root = self._place.at("")
        try:
            async with asyncio.timeout(self._settings.seconds):
                await self._host.call(lambda client: client.stat(root))
        except TimeoutError:
            return ProtocolFault(Problem.PASSING, f"{self._place} does not answer")
        except ProtocolFault as fault:
            if fault.problem is not Problem.ABSENT:
                return fault
            return ProtocolFault(Problem.UNREACHABLE, f"there is no folder {root} on {self._place}")
        return None

    async def _each(
        self,
        action: Callable[[asyncssh.SFTPClient, Item], Awaitable[Result]],
        items: Sequence[Item],
        *,
        again: bool = True,
    ) -> list[Result | ProtocolFault]:
        """Ask about all over one session; a connection that cannot be opened is tried once for all of them."""

        async def one(item: Item) -> Result:
            return await self._host.call(lambda client: action(client, item), again=again)

        try:
            if items:
                await self._host.ready()
        except ProtocolFault as fault:
            return [fault for _ in items]
        done = await each(one, items, at_once=self._settings.requests, seconds=self._settings.seconds)
        if not any(_is_absent(result) for result in done) or (missing := await self._missing_root()) is None:
            return done
        return [missing if _is_absent(result) else result for result in done]


def _names(client: asyncssh.SFTPClient, folder: str) -> AsyncGenerator[asyncssh.SFTPName, None]:
    return cast(AsyncGenerator[asyncssh.SFTPName, None], client.scandir(folder))


def _is_absent(result: object) -> bool:
    return isinstance(result, ProtocolFault) and result.problem is Problem.ABSENT


def _must_fit(room: Room, size_bytes: int) -> None:
    if room.free_bytes is not None and room.free_bytes < size_bytes:
        raise ProtocolFault(Problem.FULL, f"{room.free_bytes} bytes are free, {size_bytes} are needed")
