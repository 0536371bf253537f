"""The protocol `http`: a web server that knows nothing of files but GET and HEAD."""

import codecs
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

import aiohttp
from aiohttp import hdrs

from khomas.storage.checksums import Algorithm
from khomas.storage.protocols.dav.answers import fault_of
from khomas.storage.protocols.dav.protocol import DavProtocol, session_of
from khomas.storage.protocols.dav.session import Session, said
from khomas.storage.protocols.interface import (
    Abilities,
    Access,
    Digest,
    Entry,
    Kind,
    Plugin,
    Problem,
    ProtocolFault,
    Room,
)
from khomas.storage.protocols.many import each
from khomas.storage.protocols.reading_only import ReadingOnly
from khomas.storage.protocols.web.index import Listed, Page, from_json

_PAGE: Final = 1000
_PIECE: Final = 256 * 1024
# Of a listing in JSON, which is read at once.
_JSON: Final = 256 * 1024 * 1024
_PLAIN: Final = {"Accept-Encoding": "identity"}
_ABILITIES: Final = Abilities(writes=False, checksums=DavProtocol.abilities.checksums)


class WebReader:
    """Reads from a web server."""

    def __init__(self, session: Session) -> None:
        self._session = session
        # Files are read, and checksums asked for, as from a server of WebDAV.
        self._dav = DavProtocol(session)
        self.third_party = self._dav.third_party

    async def space(self) -> Room:
        """Show that it answers; it tells no space."""
        async with self._session.answer(hdrs.METH_HEAD, self._session.root, fails=False) as reply:
            if reply.status >= 500 or reply.status == 401:
                raise fault_of(hdrs.METH_HEAD, reply.status, await said(reply))
        return Room(None, None)

    async def stat(self, paths: Sequence[str]) -> list[Entry | ProtocolFault]:
        """Ask for heads."""
        settings = self._session.settings
        return await each(self._stat, paths, at_once=settings.connections, seconds=settings.seconds)

    async def entries(self, folder: str) -> AsyncGenerator[Sequence[Entry], None]:
        """Read the listing that the server makes; files whose exact size it does not tell are asked for."""
        found: list[Listed] = []
        async for some in self._listed(f"{folder}/" if folder else ""):
            found.extend(some)
            while len(found) >= _PAGE:
                page, found = found[:_PAGE], found[_PAGE:]
                yield await self._entries(folder, page)
        if found:
            yield await self._entries(folder, found)

    async def checksum(self, paths: Sequence[str], algorithm: Algorithm) -> list[Digest | ProtocolFault]:
        """Ask for digests; few web servers have them."""
        return await self._dav.checksum(paths, algorithm)

    def get(self, path: str, start: int = 0, size_bytes: int | None = None) -> AsyncGenerator[memoryview, None]:
        """Read."""
        return self._dav.get(path, start, size_bytes)

    def local_path(self, path: str) -> None:
        """Return nothing: it is elsewhere."""

    async def close(self) -> None:
        """End connections."""
        await self._session.close()

    async def _stat(self, path: str) -> Entry:
        url = self._session.url(path)
        async with self._session.answer(hdrs.METH_HEAD, url, headers=_PLAIN, fails=False) as reply:
            if reply.url.raw_path.endswith("/") and reply.status in (200, 403):
                # It was redirected to the folder. One without a listing is forbidden, and there.
                return Entry(path, Kind.FOLDER, 0, _time(reply))
            if reply.status >= 300:
                raise fault_of(hdrs.METH_HEAD, reply.status, await said(reply))
            if reply.content_length is None:
                raise ProtocolFault(Problem.UNSUPPORTED, f"the server tells no size of {path}")
            return Entry(path, Kind.FILE, reply.content_length, _time(reply))

    async def _listed(self, path: str) -> AsyncGenerator[Sequence[Listed], None]:
        async with self._session.answer(hdrs.METH_GET, self._session.url(path), headers=_PLAIN, fails=False) as reply:
            if reply.status == 403:
                raise ProtocolFault(Problem.UNSUPPORTED, f"the server does not list {path or '/'}")
            if reply.status >= 300:
                raise fault_of(hdrs.METH_GET, reply.status, await said(reply))
            if reply.content_type == "application/json":
                yield from_json(await _text(reply))
            elif reply.content_type == "text/html":
                async for some in _of_page(reply):
                    yield some
            else:
                raise ProtocolFault(Problem.TAKEN, f"{path} is no folder")

    async def _entries(self, folder: str, page: Sequence[Listed]) -> Sequence[Entry]:
        prefix = f"{folder}/" if folder else ""
        unknown = [prefix + one.name for one in page if not one.folder and one.size_bytes is None]
        asked = dict(zip(unknown, await self.stat(unknown), strict=True))
        return [_entry(prefix + one.name, one, asked.get(prefix + one.name)) for one in page]


async def _of_page(reply: aiohttp.ClientResponse) -> AsyncGenerator[Sequence[Listed], None]:
    page, decoder = Page(str(reply.url)), codecs.getincrementaldecoder("utf-8")("replace")
    async for piece in reply.content.iter_chunked(_PIECE):
        some = page.take(decoder.decode(piece))
        if not page.is_listing:
            raise ProtocolFault(Problem.UNSUPPORTED, f"{reply.url} is a page, and no listing of a folder")
        yield some


async def _text(reply: aiohttp.ClientResponse) -> str:
    text = bytearray()
    async for piece in reply.content.iter_chunked(_PIECE):
        text += piece
        if len(text) > _JSON:
            raise ProtocolFault(Problem.UNSUPPORTED, "the listing is too long; let the server list on pages")
    return text.decode(errors="replace")


def _entry(path: str, listed: Listed, asked: Entry | ProtocolFault | None) -> Entry:
    if listed.folder:
        return Entry(path, Kind.FOLDER, 0, listed.modify_time)
    if asked is None:
        return Entry(path, Kind.FILE, listed.size_bytes or 0, listed.modify_time)
    # It may have gone meanwhile, or be a link that leads nowhere.
    return asked if isinstance(asked, Entry) else Entry(path, Kind.OTHER)


def _time(reply: aiohttp.ClientResponse) -> datetime | None:
    try:
        return parsedate_to_datetime(reply.headers[hdrs.LAST_MODIFIED]).astimezone(UTC)
    except (KeyError, ValueError):
        return None


def _open(access: Access) -> ReadingOnly:
    return ReadingOnly(WebReader(session_of(access)), _ABILITIES)


plugin = Plugin(open=_open)
