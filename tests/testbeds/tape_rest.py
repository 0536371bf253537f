"""A stand-in for a server with the WLCG Tape REST interface, written from its specification: none was near.

Files come to disk when the test delivers them. Slashes at the end of addresses are taken, as gfal2 sends them.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote
from uuid import uuid4

from aiohttp import web

CONTENT: Final = b"0123456789"
_ABOUT: Final = """<?xml version="1.0"?><D:multistatus xmlns:D="DAV:"><D:response><D:href>{path}</D:href><D:propstat>
<D:prop><D:resourcetype>{kind}</D:resourcetype><D:getcontentlength>{size}</D:getcontentlength>
<D:quota-available-bytes>1000000000</D:quota-available-bytes></D:prop><D:status>HTTP/1.1 200 OK</D:status></D:propstat>
</D:response></D:multistatus>"""


@dataclass(slots=True)
class TapeRest:
    """A running one."""

    port: int = 0
    # True = on disk too.
    files: dict[str, bool] = field(default_factory=dict)
    # Paths by the id of the request, in their order.
    staged: dict[str, list[str]] = field(default_factory=dict)
    lifetimes: set[str] = field(default_factory=set)
    errors: dict[str, str] = field(default_factory=dict)
    released: list[str] = field(default_factory=list)
    away: bool = False

    @property
    def address(self) -> str:
        """Of its root."""
        return f"dav://127.0.0.1:{self.port}/vo"

    def deliver(self, *paths: str) -> None:
        """Bring files to disk."""
        for path in paths:
            self.files[f"/vo/{path}"] = True

    async def well_known(self, _: web.Request) -> web.Response:
        """Tell where the interface is."""
        endpoint = {"uri": f"http://127.0.0.1:{self.port}/api/v1", "version": "v1", "metadata": {}}
        return web.json_response({"sitename": "test", "description": "", "endpoints": [endpoint]})

    async def stage(self, request: web.Request) -> web.Response:
        """Take a request."""
        files = (await request.json())["files"]
        self.lifetimes |= {one["diskLifetime"] for one in files}
        name = str(uuid4())
        self.staged[name] = [one["path"] for one in files]
        return web.json_response({"requestId": name}, status=201)

    async def told(self, request: web.Request) -> web.Response:
        """Tell how far a request is."""
        name = request.match_info["name"]
        if name not in self.staged:
            return web.json_response({"title": "no such request"}, status=404)
        files = [self._told(path) for path in self.staged[name]]
        return web.json_response({"id": name, "createdAt": 1, "startedAt": 1, "files": files})

    def _told(self, path: str) -> dict[str, Any]:
        told: dict[str, Any] = {"path": path, "onDisk": self.files.get(path, False)}
        if path in self.errors:
            told |= {"error": self.errors[path], "state": "FAILED"}
        return told

    async def cancel(self, request: web.Request) -> web.Response:
        """Take files out of a request."""
        gone = set((await request.json())["paths"])
        name = request.match_info["name"]
        self.staged[name] = [path for path in self.staged[name] if path not in gone]
        return web.Response(status=200)

    async def release(self, request: web.Request) -> web.Response:
        """End the time of files."""
        for path in (await request.json())["paths"]:
            self.released.append(path)
            self.files[path] = False
        return web.Response(status=200)

    async def archive_info(self, request: web.Request) -> web.Response:
        """Tell where files are."""
        return web.json_response([self._where(path) for path in (await request.json())["paths"]])

    async def about(self, request: web.Request) -> web.Response:
        """Tell of a file or of the root, as WebDAV does."""
        path = request.path
        if path.rstrip("/") != "/vo" and path not in self.files:
            return web.Response(status=404)
        kind, size = ("", len(CONTENT)) if path in self.files else ("<D:collection/>", 0)
        text = _ABOUT.format(path=quote(path), kind=kind, size=size)
        return web.Response(status=207, text=text, content_type="application/xml")

    async def content(self, request: web.Request) -> web.Response:
        """Send a file that is on disk."""
        if request.path not in self.files:
            return web.Response(status=404)
        return web.Response(body=CONTENT) if self.files[request.path] else web.Response(status=403, text="on tape")

    def _where(self, path: str) -> dict[str, Any]:
        if path not in self.files:
            return {"path": path, "error": "USER ERROR: file does not exist or is not accessible to you"}
        return {"path": path, "locality": "DISK_AND_TAPE" if self.files[path] else "TAPE"}

    @web.middleware
    async def outage(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Be out of order when the test says so."""
        if self.away:
            raise web.HTTPServiceUnavailable
        answer: web.StreamResponse = await handler(request)
        return answer


@asynccontextmanager
async def running() -> AsyncIterator[TapeRest]:
    """Serve until the end."""
    tape = TapeRest()
    application = web.Application(middlewares=[tape.outage])
    application.router.add_route("OPTIONS", "/{any:.*}", _options)
    application.router.add_get("/.well-known/wlcg-tape-rest-api", tape.well_known)
    application.router.add_route("PROPFIND", "/vo{any:.*}", tape.about)
    application.router.add_get("/vo/{any:.*}", tape.content)
    for end in ("", "/"):
        application.router.add_post(f"/api/v1/stage{end}", tape.stage)
        application.router.add_get(f"/api/v1/stage/{{name}}{end}", tape.told)
        application.router.add_post(f"/api/v1/stage/{{name}}/cancel{end}", tape.cancel)
        application.router.add_post(f"/api/v1/release/{{name}}{end}", tape.release)
        application.router.add_post(f"/api/v1/archiveinfo{end}", tape.archive_info)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    tape.port = runner.addresses[0][1]
    try:
        yield tape
    finally:
        await runner.cleanup()


async def _options(_: web.Request) -> web.Response:
    return web.Response(headers={"DAV": "1"})
