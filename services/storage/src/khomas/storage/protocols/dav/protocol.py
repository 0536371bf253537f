"""The protocol `davs`: what the conformance suite wants, of servers that differ in nearly everything."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from datetime import timedelta
from typing import Final, TypeVar

import aiohttp
from pydantic import ValidationError

from khomas.storage.checksums import Algorithm
from khomas.storage.protocols.blocks import whole
from khomas.storage.protocols.dav.answers import digests_of, fault_of
from khomas.storage.protocols.dav.copies import HttpCopies
from khomas.storage.protocols.dav.lending import Lender
from khomas.storage.protocols.dav.listing import PROPERTIES, QUOTA, Multistatus, Resource
from khomas.storage.protocols.dav.session import DavSettings, Session, said
from khomas.storage.protocols.dav.tape import RestTape
from khomas.storage.protocols.interface import (
    Abilities,
    Access,
    Digest,
    Entry,
    Kind,
    Plugin,
    Problem,
    ProtocolFault,
    Remote,
    Room,
    Tape,
)
from khomas.storage.protocols.many import each

Item = TypeVar("Item")
Result = TypeVar("Result")

_PIECE: Final = 1024 * 1024
# More at once goes through the memory, and not through the cache, at each step of TLS.
_WRITE: Final = 256 * 1024
# Files up to this size are sent in one step.
_SMALL: Final = 1024 * 1024
_PAGE: Final = 1000
_XML: Final = {"Content-Type": "application/xml; charset=utf-8"}
# Ask in the words of both standards: https://www.rfc-editor.org/rfc/rfc3230 and rfc9530.
_WANTED: Final = {Algorithm.ADLER32: "adler"}
_UNTOLD_SECONDS: Final = 600.0


class _Body:
    """The body of a PUT, sent once: what was read from a source cannot be read again."""

    def __init__(self, blocks: AsyncIterator[memoryview]) -> None:
        self._blocks = blocks
        self._pieces = self._given()
        self._sender: asyncio.Task[object] | None = None

    def __aiter__(self) -> AsyncIterator[memoryview]:
        if self._sender is not None:
            raise aiohttp.ClientConnectionError("the connection broke while the file was sent")
        return self._pieces

    async def _given(self) -> AsyncGenerator[memoryview, None]:
        self._sender = asyncio.current_task()
        ahead = memoryview(b"")
        async for block in self._blocks:
            for piece in _sliced(ahead):
                yield piece
            ahead = block
        # Sent when the source is known to be at its end, and right: an answer may come as soon as this is there.
        for piece in _sliced(ahead[:-1]):
            yield piece
        # In a TLS record of its own. XrdHttp 5.5.3 reads records into a buffer of 1 MiB, and waits for the socket when
        # that is full. When the last record lies across its end, the rest has been received and waits in OpenSSL, and
        # the server waits for ever: for one size in 1500. One byte lies across nothing.
        if last := ahead[-1:]:
            yield last

    async def close(self) -> None:
        """Return when nobody asks for blocks any more; the library sends in a task of its own, and leaves it alone."""
        if self._sender is not None and not self._sender.done():
            self._sender.cancel()
            await asyncio.wait([self._sender])
        await self._pieces.aclose()


class DavProtocol:
    """A StorageElement behind a server of WebDAV."""

    # That nothing is overwritten is promised by some servers and kept by fewer.
    abilities = Abilities(checksums=(Algorithm.ADLER32, Algorithm.MD5, Algorithm.SHA256))

    def __init__(self, session: Session) -> None:
        self._session = session
        # Until when the server is not asked for checksums that it has not told.
        self._untold: dict[Algorithm, float] = {}
        self._sums: asyncio.Semaphore | None = None
        self.third_party = HttpCopies(session)
        self.tape: Tape | None = RestTape(session) if session.settings.tape else None

    async def space(self) -> Room:
        """Ask for the quota (RFC 4331)."""
        (root,) = await self._properties("", QUOTA)
        free, used = root.number("quota-available-bytes"), root.number("quota-used-bytes")
        return Room(free, None if free is None or used is None else free + used)

    async def stat(self, paths: Sequence[str]) -> list[Entry | ProtocolFault]:
        """Look at single resources."""
        return await self._each(self._stat, paths)

    async def entries(self, folder: str) -> AsyncGenerator[Sequence[Entry], None]:
        """List a folder; the answer is read as it comes."""
        found: list[Entry] = []
        async for resource in self._listed(f"{folder}/" if folder else "", PROPERTIES, depth="1"):
            entry = self._entry(resource)
            if entry.path == folder:
                if entry.kind is not Kind.FOLDER:
                    raise ProtocolFault(Problem.TAKEN, f"{folder} is no folder")
                continue
            found.append(entry)
            if len(found) >= _PAGE:
                yield found
                found = []
        if found:
            yield found

    async def checksum(self, paths: Sequence[str], algorithm: Algorithm) -> list[Digest | ProtocolFault]:
        """Ask for digests."""

        async def one(path: str) -> Digest:
            return await self._digest(path, algorithm)

        if self._untold.get(algorithm, 0.0) > time.monotonic():
            return [_untold(algorithm)] * len(paths)
        return await self._each(one, paths)

    async def delete(self, paths: Sequence[str]) -> list[ProtocolFault | None]:
        """Delete files; a folder only if it is empty."""
        return await self._each(self._delete, paths)

    async def make_folders(self, paths: Sequence[str]) -> list[ProtocolFault | None]:
        """Make folders from the top."""
        return await self._each(self._make_folder, paths)

    async def rename(self, pairs: Sequence[tuple[str, str]]) -> list[ProtocolFault | None]:
        """Move files."""
        return await self._each(self._rename, pairs)

    async def get(self, path: str, start: int = 0, size_bytes: int | None = None) -> AsyncGenerator[memoryview, None]:
        """Read, by a range where not all is wanted."""
        if start == 0 and size_bytes is None:
            headers = {}
        else:
            size_bytes = await self._within(path, start, size_bytes)
            if size_bytes == 0:
                return
            headers = {"Range": f"bytes={start}-{'' if size_bytes is None else start + size_bytes - 1}"}
        headers["Accept-Encoding"] = "identity"
        async with self._session.answer("GET", self._session.url(path), headers=headers, fails=False) as reply:
            if reply.status == 416:
                return
            if reply.status >= 300:
                raise fault_of("GET", reply.status, await said(reply))
            if reply.url.raw_path.endswith("/"):
                raise ProtocolFault(Problem.ABSENT, f"{path} is a folder")
            # Who answers 200 to a range has ignored it.
            skip, left = start if reply.status == 200 else 0, reply.content_length
            if reply.status == 200 and left is not None:
                left = max(0, left - start) if size_bytes is None else min(max(0, left - start), size_bytes)
            async for block in _pieces(reply, skip, size_bytes if left is None else left):
                yield block

    async def _within(self, path: str, start: int, size_bytes: int | None) -> int | None:
        """Return how much of a range to ask for. XrdHttp sends nothing of one that has no end, or one past the end."""
        if size_bytes == 0 or (await self._session.met()).shortens:
            return size_bytes
        left = max(0, (await self._stat(path)).size_bytes - start)
        return left if size_bytes is None else min(left, size_bytes)

    async def put(self, path: str, blocks: AsyncIterator[memoryview], size_bytes: int) -> None:
        """Write with a known length. Never with Content-Range: some servers would keep the part as the whole."""
        if size_bytes <= _SMALL:
            # A body that is sent block by block costs as much again.
            data = await whole(blocks)
            if len(data) != size_bytes:
                raise ProtocolFault(Problem.PASSING, f"{len(data)} bytes came where {size_bytes} were announced")
            await self._put(path, data, size_bytes)
            return
        body = _Body(blocks)
        try:
            await self._put(path, body, size_bytes)
        finally:
            await body.close()

    async def _put(self, path: str, data: bytes | _Body, size_bytes: int) -> None:
        headers = {"Content-Length": str(size_bytes), "Content-Type": "application/octet-stream"}
        async with self._session.answer("PUT", self._session.url(path), headers=headers, data=data) as reply:
            await said(reply)

    async def lend(self, paths: Sequence[str], lifetime: timedelta) -> list[Remote | ProtocolFault]:
        """Return tokens for single files, where the server believes an issuer of ours."""
        settings = self._session.settings
        if settings.lender_key is None:
            return [ProtocolFault(Problem.UNSUPPORTED, "no lender is configured")] * len(paths)
        lender = Lender(settings.lender, settings.lender_key, settings.lender_key_id, settings.lender_audience)
        places = [self._session.root_path + path for path in paths]
        tokens = await asyncio.to_thread(lender.tokens, places, lifetime)
        return [
            Remote(self._session.url(path), {"Authorization": f"Bearer {token}"})
            if token is not None
            else ProtocolFault(Problem.UNSUPPORTED, f"no scope names {path}")
            for path, token in zip(paths, tokens, strict=True)
        ]

    def local_path(self, path: str) -> None:
        """Return nothing: it is elsewhere."""

    async def close(self) -> None:
        """End connections."""
        await self._session.close()

    # ------------------------------------------------------------------------------------------- single ones

    async def _stat(self, path: str) -> Entry:
        (resource,) = await self._properties(path, PROPERTIES)
        entry = self._entry(resource)
        return Entry(path, entry.kind, entry.size_bytes, entry.modify_time)

    async def _asking(self) -> asyncio.Semaphore:
        """Bound the checksums that are asked for at once."""
        dialect = await self._session.met()
        if self._sums is None:
            self._sums = asyncio.Semaphore(dialect.sums_at_once)
        return self._sums

    async def _digest(self, path: str, algorithm: Algorithm) -> Digest:
        wanted = {"Want-Digest": algorithm.value, "Want-Repr-Digest": f"{_WANTED.get(algorithm, algorithm.value)}=10"}
        headers = wanted | {"Accept-Encoding": "identity"}
        async with (
            await self._asking(),
            self._session.answer("HEAD", self._session.url(path), headers=headers) as reply,
        ):
            told = digests_of(reply.headers.get("Digest", ""), reply.headers.get("Repr-Digest", ""))
            size_bytes = int(reply.headers["Content-Length"]) if "Content-Length" in reply.headers else None
        if algorithm not in told:
            self._untold[algorithm] = time.monotonic() + _UNTOLD_SECONDS
            raise _untold(algorithm)
        return Digest(algorithm, told[algorithm], size_bytes)

    async def _delete(self, path: str) -> None:
        # Depth: 0 keeps Apache from deleting a folder with all that is in it.
        async with self._session.answer(
            "DELETE", self._session.url(path), headers={"Depth": "0"}, fails=False
        ) as reply:
            if reply.status >= 300 and reply.status not in (404, 410):
                raise fault_of("DELETE", reply.status, await said(reply))

    async def _make_folder(self, path: str, *, deep: bool = False) -> None:
        # nginx wants the slash.
        async with self._session.answer("MKCOL", self._session.url(path) + "/", fails=False) as reply:
            status, body = reply.status, await said(reply)
        if status == 409 and (above := path.rpartition("/")[0]) and not deep:
            await self._make_folder(above)
            await self._make_folder(path, deep=True)
        elif status >= 300:
            await self._must_be_folder(path, fault_of("MKCOL", status, body))

    async def _must_be_folder(self, path: str, fault: ProtocolFault) -> None:
        """Forgive a fault where there is a folder: Apache forbids it to the second one of two who make it."""
        (found,) = await self.stat([path])
        if isinstance(found, ProtocolFault):
            raise fault
        if found.kind is not Kind.FOLDER:
            raise ProtocolFault(Problem.TAKEN, f"{path} is no folder")

    async def _rename(self, pair: tuple[str, str]) -> None:
        source, target = pair
        # XrdHttp overwrites in spite of "Overwrite: F", so it is asked first.
        if not (await self._session.met()).spares:
            await self._must_be_free(target)
        try:
            await self._move(source, target)
        except ProtocolFault as fault:
            folder = target.rpartition("/")[0]
            if fault.problem is not Problem.PASSING or not folder:
                raise
            # Apache answers 500 when the folder is missing; somebody else may have made it meanwhile.
            await self._stat(folder)
            await self._move(source, target)

    async def _move(self, source: str, target: str) -> None:
        headers = {"Destination": self._session.destination(target), "Overwrite": "F"}
        async with self._session.answer("MOVE", self._session.url(source), headers=headers) as reply:
            await said(reply)

    async def _must_be_free(self, path: str) -> None:
        try:
            await self._stat(path)
        except ProtocolFault as fault:
            if fault.problem is Problem.ABSENT:
                return
            raise
        raise ProtocolFault(Problem.TAKEN, f"there is a {path} already")

    # --------------------------------------------------------------------------------------------- PROPFIND

    async def _properties(self, path: str, properties: bytes) -> list[Resource]:
        found = [one async for one in self._listed(path, properties, depth="0")]
        if len(found) != 1:
            raise ProtocolFault(Problem.PASSING, f"PROPFIND of {path or '/'} was answered with {len(found)} resources")
        return found

    async def _listed(self, path: str, properties: bytes, *, depth: str) -> AsyncGenerator[Resource, None]:
        url, headers = self._session.url(path), _XML | {"Depth": depth}
        async with self._session.answer("PROPFIND", url, headers=headers, data=properties) as reply:
            if reply.status != 207:
                raise ProtocolFault(Problem.UNSUPPORTED, f"PROPFIND was answered with {reply.status}")
            parser = Multistatus(quoted=self._session.dialect.quotes)
            async for piece in reply.content.iter_any():
                for resource in parser.feed(piece):
                    yield resource
            for resource in parser.feed(b"", last=True):
                yield resource

    def _entry(self, resource: Resource) -> Entry:
        path = resource.path.removeprefix(self._session.root_path).strip("/")
        if resource.path.rstrip("/") == self._session.root_path.rstrip("/"):
            path = ""
        if resource.folder:
            return Entry(path, Kind.FOLDER, 0, resource.modify_time)
        return Entry(path, Kind.FILE, resource.number("getcontentlength") or 0, resource.modify_time)

    async def _each(
        self, action: Callable[[Item], Awaitable[Result]], items: Sequence[Item]
    ) -> list[Result | ProtocolFault]:
        settings = self._session.settings
        return await each(action, items, at_once=settings.connections, seconds=settings.seconds)


def _sliced(block: memoryview) -> Iterator[memoryview]:
    return (block[start : start + _WRITE] for start in range(0, len(block), _WRITE))


async def _pieces(reply: aiohttp.ClientResponse, skip: int, left: int | None) -> AsyncGenerator[memoryview, None]:
    """Yield the body from `skip` on, so many bytes; raise PASSING when they do not come."""
    if left == 0:
        return
    async for piece in reply.content.iter_chunked(_PIECE):
        block = memoryview(piece)[min(skip, len(piece)) :]
        skip -= len(piece) - len(block)
        block = block if left is None else block[:left]
        if block:
            yield block
        if left is not None:
            left -= len(block)
            if not left:
                return
        # A body that is there already would keep everybody else waiting.
        await asyncio.sleep(0)
    if left:
        raise ProtocolFault(Problem.PASSING, f"the connection ended {left} bytes too early")


def session_of(access: Access) -> Session:
    """Return what speaks to the server of an access point; raises ValueError for wrong options."""
    try:
        settings = DavSettings.model_validate(dict(access.options))
    except ValidationError as error:
        wrong = "; ".join(f"option {'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise ValueError(wrong) from None
    return Session(access.address, settings, access.credential)


def _open(access: Access) -> DavProtocol:
    return DavProtocol(session_of(access))


plugin = Plugin(open=_open)


def _untold(algorithm: Algorithm) -> ProtocolFault:
    return ProtocolFault(Problem.UNSUPPORTED, f"the server tells no {algorithm.value}")
