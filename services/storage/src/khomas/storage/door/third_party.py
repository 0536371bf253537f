"""HTTP third-party copies: this storage fetches a file from another one, or sends it there.

The answer begins with 201 before anything has happened; markers tell how far it is, the last line how it ended.
https://twiki.cern.ch/twiki/bin/view/LCG/HttpTpc
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiohttp import hdrs, web
from yarl import URL

from khomas.storage.checksums import Algorithm
from khomas.storage.door.digests import Hashes, announced
from khomas.storage.door.receiving import receive
from khomas.storage.door.refusal import Refusal
from khomas.storage.protocols.dav.session import said, trust

_MARK_SECONDS: Final = 5.0
_CONNECT_SECONDS: Final = 20.0
_IDLE_SECONDS: Final = 60.0
_READ_AHEAD: Final = 4 * 1024 * 1024
_REDIRECTS: Final = 5
_GIVEN: Final = "transferheader"
# What belongs to the connection, which is ours.
_OURS: Final = frozenset({"host", "content-length", "transfer-encoding", "connection", "expect", "upgrade", "te"})
_WANT: Final = {"Want-Digest": "adler32", "Want-Repr-Digest": "adler=10", "Accept-Encoding": "identity"}


@dataclass(frozen=True, slots=True)
class Peers:
    """Whom the door speaks to for others."""

    # Patterns of "scheme://host:port".
    allowed: Sequence[str]
    authorities: Path | None = None

    def check(self, url: str) -> None:
        """Refuse an address that is not meant for copies."""
        parts = urlsplit(url)
        port = parts.port or {"https": 443, "http": 80}.get(parts.scheme)
        where = f"{parts.scheme}://{parts.hostname or ''}:{port}"
        if not parts.hostname or not any(fnmatchcase(where, pattern) for pattern in self.allowed):
            raise Refusal(403, "PEER", f"Copies with {where} are not allowed here.")


class Failed(Exception):
    """The copy has not worked; the text is for the last line."""


@dataclass(slots=True)
class Progress:
    """How many bytes are there."""

    size_bytes: int = 0


class Copies:
    """Speaks to other storages, in the name of who asks."""

    def __init__(self, peers: Peers, executor: Executor) -> None:
        self._peers = peers
        self._executor = executor
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """End connections."""
        if self._session is not None:
            await self._session.close()

    def check(self, url: str) -> None:
        """Refuse an address that is not meant for copies."""
        self._peers.check(url)

    async def fetch(self, request: web.Request, url: str, hidden: Path, progress: Progress, *, flush: bool) -> None:
        """Bring a file from elsewhere to a hidden name, and compare it with what the source says of it."""
        async with self._answer(hdrs.METH_GET, url, _given(request) | _WANT) as reply:
            if reply.status != 200:
                raise Failed(f"Remote side failed with status code {reply.status}: {await said(reply)}")
            told = announced(reply.headers)
            hashes = Hashes(told)

            def add(piece: bytes) -> None:
                hashes.add(piece)
                progress.size_bytes = hashes.size_bytes

            await receive(reply.content, hidden, add, self._executor, flush=flush)
        if not told and request.headers.get("RequireChecksumVerification", "").lower() == "true":
            raise Failed("Remote side tells no checksum")
        try:
            hashes.compare(told)
        except Refusal as difference:
            raise Failed(f"Checksum differs: {difference.message}") from None

    async def send(
        self,
        request: web.Request,
        url: str,
        blocks: Callable[[], AsyncGenerator[memoryview, None]],
        size_bytes: int,
        progress: Progress,
    ) -> None:
        """Send a file elsewhere, and compare what that storage says of it."""
        hashes = Hashes(())
        given = _given(request)

        async def body() -> AsyncGenerator[bytes, None]:
            # From the start again after a redirection.
            nonlocal hashes
            hashes = Hashes(())
            async with aclosing(blocks()) as source:
                async for block in source:
                    piece = bytes(block)
                    await asyncio.to_thread(hashes.add, piece)
                    progress.size_bytes = hashes.size_bytes
                    yield piece

        length = {hdrs.CONTENT_LENGTH: str(size_bytes)}
        async with self._answer(hdrs.METH_PUT, url, given | length, body if size_bytes else None) as reply:
            if reply.status >= 300:
                raise Failed(f"Remote side failed with status code {reply.status}: {await said(reply)}")
            await said(reply)
        if request.headers.get("RequireChecksumVerification", "true").lower() != "false":
            async with self._answer(hdrs.METH_HEAD, url, given | _WANT) as reply:
                told = announced(reply.headers).get(Algorithm.ADLER32)
            if told is not None and told != hashes.adler32:
                raise Failed(f"Checksum differs: {hashes.adler32} was sent, and adler32 {told} is there")

    @asynccontextmanager
    async def _answer(
        self, method: str, url: str, headers: Mapping[str, str], body: Callable[[], Any] | None = None
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        try:
            async with await self._sent(method, url, dict(headers), body) as reply:
                yield reply
        except (aiohttp.ClientConnectorError, aiohttp.ClientSSLError) as error:
            raise Failed(f"Could not connect to remote server: {error}") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Failed(f"Connection to remote server broke: {str(error) or type(error).__name__}") from error

    async def _sent(
        self, method: str, url: str, headers: dict[str, str], body: Callable[[], Any] | None
    ) -> aiohttp.ClientResponse:
        for _ in range(_REDIRECTS):
            session = self._opened()
            data = body() if body is not None else None
            reply = await session.request(
                method, URL(url, encoded=True), headers=headers, data=data, allow_redirects=False
            )
            if reply.status not in (301, 302, 307, 308) or hdrs.LOCATION not in reply.headers:
                return reply
            before, url = urlsplit(url), urljoin(url, reply.headers[hdrs.LOCATION])
            reply.release()
            try:
                self._peers.check(url)
            except Refusal as refusal:
                raise Failed(f"Remote side redirects: {refusal.message}") from None
            if (before.scheme, before.netloc) != urlsplit(url)[:2]:
                # Whoever it redirects to is not whom the token is for.
                headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
        raise Failed("Remote side redirects again and again")

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            limits = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_IDLE_SECONDS)
            connector = aiohttp.TCPConnector(ssl=trust(self._peers.authorities))
            self._session = aiohttp.ClientSession(
                connector=connector, timeout=limits, read_bufsize=_READ_AHEAD, auto_decompress=False, trust_env=False
            )
        return self._session


async def followed(request: web.Request, work: Awaitable[None], progress: Progress) -> web.StreamResponse:
    """Answer with markers while it goes on, and with its outcome; it ends when the client leaves."""
    response = web.StreamResponse(status=201, headers={hdrs.CONTENT_TYPE: "text/plain"})
    await response.prepare(request)
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait([task], timeout=_MARK_SECONDS))[0]:
            await response.write(_marker(progress))
        await response.write(_marker(progress) + _outcome(task))
    finally:
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task
    await response.write_eof()
    return response


def _outcome(task: "asyncio.Future[None]") -> bytes:
    error = task.exception()
    match error:
        case None:
            return b"success: Created\n"
        case Failed():
            words = str(error)
        case Refusal():
            words = error.message
        case OSError():
            words = error.strerror or str(error)
        case _:
            raise error
    return f"failure: {' '.join(words.split())[:500]}\n".encode()


def _marker(progress: Progress) -> bytes:
    return (
        f"Perf Marker\n    Timestamp: {int(time.time())}\n    Stripe Index: 0\n"
        f"    Stripe Bytes Transferred: {progress.size_bytes}\n    Total Stripe Count: 1\nEnd\n"
    ).encode()


def _given(request: web.Request) -> dict[str, str]:
    """Return the headers that are meant for the other storage."""
    given = {name[len(_GIVEN) :]: value for name, value in request.headers.items() if name.lower().startswith(_GIVEN)}
    return {name: value for name, value in given.items() if name and name.lower() not in _OURS}
