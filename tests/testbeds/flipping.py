"""A way to a server of files over HTTPS that changes a byte in some of its answers, as bad memory on the way does."""

import asyncio
import random
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import aiohttp
import yarl
from aiohttp import web

from tests.testbeds.processes import free_ports
from tests.testbeds.web import WebServer

_PIECE = 1 << 16
_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-encoding", "host", "te", "upgrade"})


@dataclass(slots=True)
class Flipping:
    """What was changed so far, and how often that happens."""

    server: WebServer
    rate: float
    port: int
    chance: random.Random
    flipped: int = 0
    _end: threading.Event = field(default_factory=threading.Event)
    _session: aiohttp.ClientSession | None = None
    _ready: threading.Event = field(default_factory=threading.Event)

    @property
    def address(self) -> str:
        """Of the root of the server, through here."""
        return f"davs://localhost:{self.port}"

    def run(self) -> None:
        """Serve until `stop`, in a thread of its own."""
        asyncio.run(self._serve())

    def wait(self) -> None:
        """Wait until it listens."""
        assert self._ready.wait(30), "no way to the server"

    def stop(self) -> None:
        """End."""
        self._end.set()

    async def _serve(self) -> None:
        ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        ours.load_cert_chain(self.server.folder / "host.pem", self.server.folder / "host.key")
        theirs = ssl.create_default_context(capath=str(self.server.authorities))
        connector = aiohttp.TCPConnector(ssl=theirs, limit=0)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
            self._session = session
            app = web.Application(client_max_size=0)
            app.router.add_route("*", "/{path:.*}", self._passed_on)
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", self.port, ssl_context=ours).start()
            self._ready.set()
            await asyncio.to_thread(self._end.wait)
            await runner.cleanup()

    async def _passed_on(self, request: web.Request) -> web.StreamResponse:
        assert self._session is not None
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP}
        if "Destination" in headers:
            headers["Destination"] = headers["Destination"].replace(f":{self.port}/", f":{self.server.port}/")
        url = f"https://localhost:{self.server.port}{request.raw_path}"
        body = request.content.iter_chunked(_PIECE) if request.can_read_body else None
        try:
            async with self._session.request(
                request.method, yarl.URL(url, encoded=True), headers=headers, data=body, allow_redirects=False
            ) as answer:
                return await self._answered(request, answer)
        except aiohttp.ClientError as error:
            return web.Response(status=502, text=str(error))

    async def _answered(self, request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP}
        response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=kept)
        await response.prepare(request)
        wrong = request.method == "GET" and answer.status in (200, 206) and self.chance.random() < self.rate
        async for piece in answer.content.iter_chunked(_PIECE):
            if wrong:
                wrong = False
                self.flipped += 1
                place = self.chance.randrange(len(piece))
                await response.write(piece[:place] + bytes([piece[place] ^ 1]) + piece[place + 1 :])
            else:
                await response.write(piece)
        await response.write_eof()
        return response


@contextmanager
def running(server: WebServer, rate: float, seed: int = 0) -> Iterator[Flipping]:
    """Open the way."""
    way = Flipping(server, rate, free_ports(1)[0], random.Random(seed))
    thread = threading.Thread(target=way.run, daemon=True)
    thread.start()
    way.wait()
    try:
        yield way
    finally:
        way.stop()
        thread.join(30)
