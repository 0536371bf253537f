"""Looking at the tree of WebDAV: files, pages for browsers, properties."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Final

from aiohttp import hdrs, web

from khomas.kit.auth.paths import odd_path
from khomas.kit.auth.principal import Principal
from khomas.storage.checksums import Algorithm
from khomas.storage.door import browsing, digests, properties
from khomas.storage.door.asking import READ, STAT, Place, require
from khomas.storage.door.catalogued import Catalogued
from khomas.storage.door.downloads import PlainFile
from khomas.storage.door.refusal import Refusal
from khomas.storage.elements.elements import Element, Elements, Protocols, known
from khomas.storage.errors import PathNotFound
from khomas.storage.paths import PRIVATE
from khomas.storage.protocols.interface import Digest, Entry, Kind, ProtocolFault, Room, StorageProtocol

_BODY: Final = 64 * 1024
_XML: Final = "application/xml; charset=utf-8"
_PAGE: Final = "text/html; charset=utf-8"

Pages = AsyncGenerator[Sequence[Entry], None]


class Tree:
    """Shows what is there. Only StorageElements on disks of this machine are in the tree."""

    def __init__(self, elements: Elements, protocols: Protocols, catalogued: Catalogued, prefix: str) -> None:
        self._elements = elements
        self._protocols = protocols
        self._catalogued = catalogued
        # What whoever stands in front of the door puts before its addresses.
        self._prefix = prefix

    async def element(self, place: Place) -> Element:
        """Return the StorageElement of a place; PathNotFound for one that has no files here."""
        element = known(await self._elements.all(), place.element)
        if not self._protocols.is_local(element):
            raise PathNotFound(
                f"The files of {place.element} are elsewhere.", storage_element=place.element, path=place.path
            )
        return element

    async def get(self, request: web.Request, principal: Principal, place: Place) -> web.StreamResponse:
        """Give a file, or a folder as a page."""
        if not place.element:
            _require_any(principal)
            return await self._page(request, place, self._roots())
        head = request.method == hdrs.METH_HEAD
        require(principal, place, *(STAT if head else (READ,)))
        element, entry = await self._entry(place)
        if entry.kind is Kind.FOLDER:
            require(principal, place.as_folder, READ)
            return await self._page(request, place, self._entries(element, place))
        if place.slash or entry.kind is not Kind.FILE:
            raise PathNotFound(storage_element=place.element, path=place.path)
        headers = await self._digest(self._protocols.of(element), place, digests.wanted(request.headers))
        return PlainFile(await asyncio.to_thread(self._protocols.local, element, place.path), headers)

    async def propfind(self, request: web.Request, principal: Principal, place: Place) -> web.StreamResponse:
        """Tell properties of a place (Depth 0) and of what is directly in it (Depth 1)."""
        depth = request.headers.get("Depth", "infinity")
        if depth not in ("0", "1"):
            raise Refusal(403, "PROPFIND_FINITE_DEPTH", "Depth is 0 or 1.")
        if place.element:
            require(principal, place, *STAT)
        else:
            _require_any(principal)
        wanted = properties.wanted(await _body(request))
        element, entry = await self._entry(place) if place.element else (None, Entry("", Kind.FOLDER))
        folder = entry.kind is Kind.FOLDER
        if place.slash and not folder:
            raise PathNotFound(storage_element=place.element, path=place.path)
        room = await self._protocols.room(element) if element is not None and wanted.quota and folder else None
        if element is not None and folder and depth == "1":
            require(principal, place.as_folder, READ)
        response = web.StreamResponse(status=207, headers={hdrs.CONTENT_TYPE: _XML})
        await response.prepare(request)
        top = place.as_folder if folder else place
        first = properties.response(self._prefix + top.href, entry, wanted, room)
        await response.write(properties.HEAD + first.encode())
        if folder and depth == "1":
            entries = self._entries(element, place) if element is not None else self._roots()
            async with aclosing(entries):
                async for page in entries:
                    await response.write(properties.encoded(self._told(place, one, wanted, room) for one in page))
        await response.write_eof(properties.TAIL)
        return response

    def _told(self, place: Place, entry: Entry, wanted: properties.Wanted, room: Room | None) -> str:
        return properties.response(self._prefix + _child(place, entry).href, entry, wanted, room)

    async def _entry(self, place: Place) -> tuple[Element, Entry]:
        element = await self.element(place)
        (entry,) = await self._protocols.of(element).stat([place.path])
        if isinstance(entry, ProtocolFault):
            raise entry
        await self._catalogued.refuse_private(self._protocols.local(element, place.path))
        return element, entry

    async def _entries(self, element: Element, place: Place) -> Pages:
        async with aclosing(self._protocols.of(element).entries(place.path)) as pages:
            async for page in pages:
                yield [one for one in page if one.path != PRIVATE and _is_sayable(one.path)]

    async def _roots(self) -> Pages:
        elements = (await self._elements.all()).values()
        yield [Entry(one.id, Kind.FOLDER) for one in elements if self._protocols.is_local(one)]

    async def _page(self, request: web.Request, place: Place, entries: Pages) -> web.StreamResponse:
        response = web.StreamResponse(headers={hdrs.CONTENT_TYPE: _PAGE} | browsing.HEADERS)
        await response.prepare(request)
        async with aclosing(entries):
            if request.method == hdrs.METH_HEAD:
                return response
            await response.write(browsing.head(place, self._prefix).encode())
            async for page in entries:
                rows = (browsing.row(self._prefix + _child(place, one).href, one) for one in sorted(page, key=_name))
                await response.write("".join(rows).encode())
        await response.write_eof(browsing.TAIL.encode())
        return response

    async def _digest(self, protocol: StorageProtocol, place: Place, algorithm: Algorithm | None) -> dict[str, str]:
        """Return the checksum of a file as it is now; the bytes are read for it."""
        if algorithm is None:
            return {}
        (told,) = await protocol.checksum([place.path], algorithm)
        if not isinstance(told, Digest):
            raise told
        return digests.headers_of(algorithm, told.value)


def _child(place: Place, entry: Entry) -> Place:
    folder, name = entry.kind is Kind.FOLDER, entry.path.rpartition("/")[2]
    return place.child(name, folder=folder) if place.element else Place(name, slash=True)


def _name(entry: Entry) -> str:
    return entry.path


def _is_sayable(path: str) -> bool:
    """Tell whether a name can be asked for: others would be refused, and some break the listing."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return odd_path(["/" + path.replace("%", "")]) is None


def _require_any(principal: Principal) -> None:
    if not any(capability in principal.covers for capability in STAT):
        raise Refusal(403, "CAPABILITY_MISSING", f"The token has none of {', '.join(STAT)}.")


async def _body(request: web.Request) -> bytes:
    body = await request.content.read(_BODY)
    while not request.content.at_eof() and len(body) < _BODY:
        body += await request.content.read(_BODY)
    if len(body) >= _BODY:
        raise Refusal(413, "XML", "The body is too long.")
    return body
