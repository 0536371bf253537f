"""WebDAV under /dav/<storage element>/<path>, for whoever has a token with storage scopes."""

from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Final
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from khomas.kit.auth.principal import Principal
from khomas.kit.auth.verifier import Verifier
from khomas.kit.database import Database
from khomas.storage.door.asking import ROOT, Place, caller, place_of
from khomas.storage.door.catalogued import Catalogued
from khomas.storage.door.changing import Changing
from khomas.storage.door.refusal import Refusal
from khomas.storage.door.third_party import Copies, Peers
from khomas.storage.door.tree import Tree
from khomas.storage.elements.elements import Elements, Protocols

NAME: Final = "dav"
Handler = Callable[[web.Request, Principal, Place], Awaitable[web.StreamResponse]]


def dav_of(
    verifier: Verifier,
    public_url: str,
    database: Database,
    elements: Elements,
    protocols: Protocols,
    executor: Executor,
    peers: Peers,
    *,
    flush: bool,
) -> "Dav":
    """Put its parts together."""
    catalogued, copies = Catalogued(database, elements, protocols), Copies(peers, executor)
    tree = Tree(elements, protocols, catalogued, urlsplit(public_url).path.rstrip("/"))
    return Dav(verifier, tree, Changing(tree, protocols, catalogued, copies, executor, public_url, flush=flush), copies)


class Dav:
    """Gives requests to whom they are for."""

    def __init__(self, verifier: Verifier, tree: Tree, changing: Changing, copies: Copies) -> None:
        self._verifier = verifier
        self._copies = copies
        self._handlers: dict[str, Handler] = {
            hdrs.METH_GET: tree.get,
            hdrs.METH_HEAD: tree.get,
            hdrs.METH_PUT: changing.put,
            hdrs.METH_DELETE: changing.delete,
            "PROPFIND": tree.propfind,
            "MKCOL": changing.make_folder,
            "MOVE": changing.move,
            "COPY": changing.copy,
        }
        self._about = {
            "Allow": ", ".join([hdrs.METH_OPTIONS, *self._handlers]),
            "DAV": "1",
            "MS-Author-Via": "DAV",
        }

    def add_to(self, application: web.Application) -> None:
        """Serve below ROOT."""
        application.on_cleanup.append(self._close)
        resource = application.router.add_resource(ROOT + "{place:(/.*)?}", name=NAME)
        resource.add_route("*", self.handle, expect_handler=_later)

    async def _close(self, _: web.Application) -> None:
        await self._copies.close()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        if request.method == hdrs.METH_OPTIONS:
            return web.Response(headers=self._about)
        handler = self._handlers.get(request.method)
        if handler is None:
            return web.Response(status=405, headers=self._about)
        principal = await caller(request, self._verifier)
        if "#" in request.raw_path or request.query_string:
            raise Refusal(400, "ADDRESS", "Addresses of the tree have neither a question mark nor a hash sign.")
        return await handler(request, principal, place_of(request.rel_url.raw_path))


async def _later(request: web.Request) -> None:
    """Say "100 Continue" only when the body is wanted."""
