"""Reading: GET and HEAD, with ranges, sent by the kernel."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from aiohttp import web

from khomas.storage.door.grant import GRANT
from khomas.storage.door.relaying import relayed
from khomas.storage.elements.elements import Element, Elements, Protocols, known
from khomas.storage.errors import PathNotFound
from khomas.storage.paths import for_content

_TYPE: Final = "application/octet-stream"
# A browser that shows it runs nothing of it.
_HARMLESS: Final = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox; default-src 'none'"}


class PlainFile(web.FileResponse):
    """A file as it lies there. Never its neighbour: the base class would send `x.gz` for `x` to who accepts gzip."""

    def __init__(self, path: Path, headers: Mapping[str, str]) -> None:
        super().__init__(path, headers={"Content-Type": _TYPE, "Accept-Ranges": "bytes", **_HARMLESS, **headers})

    def _make_response(self, request: web.BaseRequest, accept_encoding: str):  # type: ignore[no-untyped-def]  # noqa: ANN202  the base class's private types
        return super()._make_response(request, "")


class Reading:
    """Serves replicas."""

    def __init__(self, elements: Elements, protocols: Protocols) -> None:
        self._elements = elements
        self._protocols = protocols

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Answer GET and HEAD."""
        element = known(await self._elements.all(), request.match_info["element"])
        path = for_content(request.match_info["path"])
        if not self._protocols.is_local(element):
            return await relayed(request, self._protocols.of(element), path, request[GRANT].adler32)
        local = await asyncio.to_thread(self._existing, element, path)
        adler32 = request[GRANT].adler32
        return PlainFile(local, {"Digest": f"adler32={adler32}"} if adler32 else {})

    def _existing(self, element: Element, path: str) -> Path:
        local = self._protocols.local(element, path)
        if not local.is_file():
            raise PathNotFound(storage_element=element.id, path=path)
        return local
