"""One pool of kept connections to one server, with the credential and the meaning of errors."""

import asyncio
import logging
import ssl
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote, urljoin, urlsplit

import aiohttp
from pydantic import BaseModel, ConfigDict, Field, model_validator
from yarl import URL

from khomas.kit.credentials import CredentialProvider
from khomas.storage.protocols.dav.answers import Dialect, dialect_of, fault_of
from khomas.storage.protocols.interface import Problem, ProtocolFault

log = logging.getLogger(__name__)

_SCHEMES: Final = {"davs": "https", "https": "https", "dav": "http", "http": "http"}
_REDIRECTS: Final = 5
_BODY: Final = 64 * 1024
# What arrives while a thread still works on the last block.
_READ_AHEAD: Final = 4 * 1024 * 1024
_AGAIN: Final = 2
_TOKEN_SECONDS: Final = 1.0
# For less long than servers do (Apache 5 s): who sends while the other end closes may wait until the time is over.
_KEPT_SECONDS: Final = 4.0
# XrdHttp 5.5.3 leaves some questions without an answer, mostly for checksums: they are asked again after this time.
_QUESTIONS: Final = frozenset({"HEAD", "PROPFIND"})
_UNANSWERED_SECONDS: Final = 10.0


class DavSettings(BaseModel):
    """Options of an access point."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Folder with hashed certificates of authorities, or a file with them. Empty = those of the system.
    authorities: Path | None = None
    # Kept to the server at the same time.
    connections: int = Field(default=32, gt=0, le=1000)
    # Copies for others; None = by the name that the server gives itself.
    third_party: bool | None = None
    # The server has tape, of which files are recalled by the WLCG Tape REST interface.
    tape: bool = False
    # Issuer of tokens for reading single files, and its key (ES256, PEM): the server has to believe it. Empty = who
    # reads comes through our door.
    lender: str = ""
    lender_key: Path | None = None
    lender_key_id: str = ""
    lender_audience: str = "https://wlcg.cern.ch/jwt/v1/any"
    # Until an answer begins; a server that computes a checksum of a large file needs long.
    seconds: float = Field(default=300.0, gt=0)
    connect_seconds: float = Field(default=20.0, gt=0)
    # Without any byte while bytes move.
    idle_seconds: float = Field(default=60.0, gt=0)

    @model_validator(mode="after")
    def _whole(self) -> "DavSettings":
        if bool(self.lender) != (self.lender_key is not None):
            raise ValueError("give both lender and lender_key, or none of them")
        return self


class Session:
    """Sends requests below one root. Opens nothing before the first one."""

    def __init__(self, address: str, settings: DavSettings, credential: CredentialProvider | None) -> None:
        self.root = _root(address)
        self.settings = settings
        self._credential = credential
        self._open: aiohttp.ClientSession | None = None
        self._authorization: dict[str, str] = {}
        self._good_until = 0.0
        self._closed = False
        # One question for all who want to know at the same time.
        self._meeting: asyncio.Task[None] | None = None
        # Known after its first answer.
        self._dialect: Dialect | None = None

    @property
    def root_path(self) -> str:
        """Return the path of the root in the form of listings: not quoted, with a slash at its end."""
        return URL(self.root, encoded=True).path

    @property
    def dialect(self) -> Dialect:
        """Return what the server does in its own way."""
        return self._dialect or Dialect()

    def url(self, path: str) -> str:
        """Return the address of a path."""
        return self.root + quote(path, safe="/")

    def destination(self, path: str) -> str:
        """Return the address of a path in the form that the header Destination has."""
        # XrdHttp trims the header, of bytes beyond ASCII too, unless something follows that is not part of the name.
        return self.url(path) if self.dialect.quotes else f"{unquote(self.root)}{path}?x"

    async def authorization(self) -> dict[str, str]:
        """Return the header that lets in, or raise CREDENTIAL; the token is read again after a moment."""
        if self._credential is not None and self._good_until < time.monotonic():
            token = await asyncio.to_thread(_token, self._credential)
            self._authorization = {"Authorization": f"Bearer {token}"}
            self._good_until = time.monotonic() + _TOKEN_SECONDS
        return self._authorization

    async def met(self) -> Dialect:
        """Have an answer of the server, to know how to speak to it."""
        if self._dialect is None:
            if self._meeting is None or self._meeting.done():
                self._meeting = asyncio.create_task(self._meet())
                # Whoever waits for it may be gone before it fails.
                self._meeting.add_done_callback(lambda task: task.cancelled() or task.exception())
            await asyncio.shield(self._meeting)
        return self.dialect

    async def _meet(self) -> None:
        async with self._answer("OPTIONS", self.root, {}, None):
            pass

    @asynccontextmanager
    async def answer(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, data: Any = None, fails: bool = True
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request and give its answer, with redirections followed; raise ProtocolFault for a bad one."""
        if (await self.met()).cuts and "%3F" in url:
            raise ProtocolFault(Problem.REFUSED, f"the server ends names at a question mark: {url}")
        async with self._answer(method, url, dict(headers or {}), data) as response:
            if fails and response.status >= 400:
                raise fault_of(method, response.status, await said(response))
            yield response

    async def close(self) -> None:
        """End all connections; who is still at work opens none again, for nobody would end it."""
        self._closed = True
        if self._meeting is not None and not self._meeting.done():
            self._meeting.cancel()
            await asyncio.wait([self._meeting])
        if self._open is not None:
            await self._open.close()
            # What was aborted ends in the next turn.
            await asyncio.sleep(0)
            self._open = None

    @asynccontextmanager
    async def _answer(
        self, method: str, url: str, headers: dict[str, str], data: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        try:
            async with await self._sent(method, url, headers, data) as response:
                yield response
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise translated(error) from error

    async def _sent(self, method: str, url: str, headers: dict[str, str], data: Any) -> aiohttp.ClientResponse:
        begun = urlsplit(url)
        authorization = await self.authorization()
        for _ in range(_REDIRECTS):
            where = urlsplit(url)
            # Whoever a server redirects to is not whom the token is for.
            own = authorization if (where.scheme, where.netloc) == (begun.scheme, begun.netloc) else {}
            response = await self._once(method, url, headers | own, data)
            if response.status not in (301, 302, 307, 308) or "Location" not in response.headers:
                return response
            url = urljoin(url, response.headers["Location"])
            response.release()
            if urlsplit(url).scheme != begun.scheme:
                raise ProtocolFault(Problem.CONFIGURATION, f"redirected from {begun.scheme} to {url}")
        raise ProtocolFault(Problem.CONFIGURATION, f"redirected more than {_REDIRECTS} times")

    async def _once(self, method: str, url: str, headers: dict[str, str], data: Any) -> aiohttp.ClientResponse:
        """Send it; again over a new connection if a kept one was closed meanwhile, which says nothing of the server."""
        session, idle = self._session(), self.settings.idle_seconds
        for left in reversed(range(_AGAIN)):
            impatient = left > 0 and method in _QUESTIONS
            try:
                response = await session.request(
                    method,
                    URL(url, encoded=True),
                    headers=headers,
                    data=data,
                    allow_redirects=False,
                    # What a server does not want is not sent.
                    expect100=method == "PUT" and self.dialect.continues,
                    timeout=self._limits(min(_UNANSWERED_SECONDS, idle) if impatient else idle),
                )
                self._dialect = dialect_of(response.headers.get("Server", ""))
                return response
            except aiohttp.ServerDisconnectedError:
                if not left or method not in ("PROPFIND", "MKCOL", "HEAD", "GET"):
                    raise
            except aiohttp.SocketTimeoutError:
                if not impatient:
                    raise
                log.info("dav.unanswered", extra={"method": method, "url": url})
        raise AssertionError

    def _limits(self, idle_seconds: float) -> aiohttp.ClientTimeout:
        return aiohttp.ClientTimeout(total=None, sock_connect=self.settings.connect_seconds, sock_read=idle_seconds)

    def _session(self) -> aiohttp.ClientSession:
        if self._closed:
            raise ProtocolFault(Problem.PASSING, "the service is about to end")
        if self._open is None:
            connector = aiohttp.TCPConnector(
                limit=self.settings.connections,
                keepalive_timeout=_KEPT_SECONDS,
                ssl=trust(self.settings.authorities),
                # Pythons before this one wait without end for the goodbye of a server that a cancelled request left.
                enable_cleanup_closed=sys.version_info < (3, 12, 7),
            )
            self._open = aiohttp.ClientSession(
                connector=connector, read_bufsize=_READ_AHEAD, auto_decompress=False, trust_env=False
            )
        return self._open


async def said(response: aiohttp.ClientResponse) -> str:
    """Return the beginning of a body."""
    return (await response.content.read(_BODY)).decode(errors="replace")


def translated(error: Exception) -> ProtocolFault:
    """Return what an error of the connection means."""
    words = str(error) or type(error).__name__
    match error:
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientSSLError() | ssl.SSLCertVerificationError():
            return ProtocolFault(Problem.CONFIGURATION, f"no trust: {words}")
        case aiohttp.ServerTimeoutError() | TimeoutError():
            return ProtocolFault(Problem.PASSING, f"no answer in time: {words}")
        case aiohttp.ClientConnectorError() | ConnectionRefusedError():
            return ProtocolFault(Problem.UNREACHABLE, words)
        case _:
            return ProtocolFault(Problem.PASSING, f"the connection broke: {words}")


def _root(address: str) -> str:
    parts = urlsplit(address)
    scheme = _SCHEMES.get(parts.scheme)
    if scheme is None or not parts.hostname:
        raise ValueError(f"the address is davs://host/path, and not {address}")
    if parts.query or parts.fragment or parts.username or parts.password:
        raise ValueError("the address has no user, question mark or hash sign; credentials have names of their own")
    path = parts.path.rstrip("/") + "/"
    return f"{scheme}://{parts.netloc}{quote(path, safe='/%')}"


def trust(authorities: Path | None) -> ssl.SSLContext:
    """Return whom to believe: the system's authorities, or those of a folder or file."""
    if authorities is None:
        return ssl.create_default_context()
    if authorities.is_dir():
        return ssl.create_default_context(capath=str(authorities))
    return ssl.create_default_context(cafile=str(authorities))


def _token(credential: CredentialProvider) -> str:
    """Read the token. A server may say 403 to one that has expired, so that is found out before."""
    known = credential.status()
    if not known.usable(datetime.now(UTC)):
        trouble = known.trouble or "it is not valid now"
        raise ProtocolFault(Problem.CREDENTIAL, f"credential {credential.name}: {trouble}. {known.remedy}".rstrip())
    path = credential.files().get("token")
    if path is None:
        message = f"credential {credential.name} is of kind {credential.kind}, which has no token"
        raise ProtocolFault(Problem.CONFIGURATION, message)
    try:
        return path.read_text().strip()
    except OSError as error:
        raise ProtocolFault(Problem.CREDENTIAL, f"credential {credential.name}: {error.strerror}") from error
