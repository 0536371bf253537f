"""HTTPS to the REST interface of an ARC CE, on connections that are kept."""

import asyncio
import base64
import json
import ssl
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiofiles
import aiohttp

from khomas.scheduler.backends.arc.answers import entries, versions
from khomas.scheduler.backends.arc.settings import ArcSettings
from khomas.scheduler.backends.commands import note, redacted

_VERSIONS = ("1.1", "1.0")
_PIECE = 1 << 20
_REFUSED = (401, 403)
_BUSY = (429, 503)
_FULL = "No more jobs allowed"


class ArcError(Exception):
    """The CE did not do what it was asked for; what became of the call is not known."""


class ArcRefusedError(ArcError):
    """The CE does not take our credential: nothing was changed."""


class ArcUnreachableError(ArcError):
    """There is no connection to the CE: nothing was changed."""


class ArcFullError(ArcError):
    """The CE takes no more jobs now: nothing was changed."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that was received as a whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    # ARC says what is wrong in the status line.
    reason: str = ""

    @property
    def said(self) -> str:
        """What the CE complains about."""
        return (self.reason or self.body[:200].decode("utf-8", "replace")).strip() or str(self.status)


class ArcClient:
    """One CE. Opens its connections when the first call is made, and anew when the certificate has changed."""

    def __init__(self, settings: ArcSettings) -> None:
        self._settings = settings
        self._root = settings.url.rstrip("/") + "/rest"
        self._timeout = aiohttp.ClientTimeout(total=settings.deadline_s)
        self._session: aiohttp.ClientSession | None = None
        self._opening = asyncio.Lock()
        self._signed = 0.0
        self._base = ""

    async def aclose(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def jobs(self, states: Iterable[str] = ()) -> list[Mapping[str, Any]]:
        """Our jobs; with states those only that are in one of them now, each with its state."""
        reply = await self._call("GET", "/jobs", {"state": ",".join(states)} if states else {})
        return entries(_document(_good(reply)), "job")

    async def act(self, action: str, ids: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        """Do one thing with many jobs; what the CE says of each."""
        if not ids:
            return {}
        body = json.dumps({"job": [{"id": one} for one in ids]}).encode()
        reply = await self._call("POST", "/jobs", {"action": action}, body, "application/json")
        return {str(entry.get("id")): entry for entry in entries(_document(_good(reply)), "job")}

    async def create(self, descriptions: bytes) -> list[Mapping[str, Any]]:
        """Make jobs of a document of descriptions; what the CE says of each, in the same order."""
        reply = await self._call("POST", "/jobs", {"action": "new"}, descriptions, "application/xml")
        if reply.status in _BUSY or _FULL in reply.said:
            raise ArcFullError(f"the CE takes no more jobs now: {reply.said}")
        return entries(_document(_good(reply)), "job")

    async def information(self) -> Any:
        """Describe the CE, in GLUE2."""
        return _document(_good(await self._call("GET", "/info")))

    async def diagnosis(self, native_id: str, item: str) -> str:
        """Read one of the files that the CE keeps about a job; empty when it is not there."""
        reply = await self._call("GET", f"/jobs/{quote(native_id, safe='')}/diagnose/{item}")
        return _good(reply, 404).body.decode("utf-8", "replace") if reply.status != 404 else ""

    async def put(self, native_id: str, name: str, content: bytes) -> bool:
        """Write a file into the folder of a job; False when there is no such job."""
        reply = await self._call("PUT", _session(native_id, name), {}, content, "application/octet-stream")
        return _good(reply, 404).status != 404

    async def size(self, native_id: str, name: str) -> int | None:
        """Size of a file in the folder of a job; None when it is not there."""
        reply = await self._call("HEAD", _session(native_id, name))
        return None if _good(reply, 404).status == 404 else int(reply.headers.get("Content-Length", 0))

    async def read(self, native_id: str, name: str, first: int | None = None, last: int = 0) -> bytes | None:
        """Read a file from the folder of a job, or the bytes `first` to `last` of it; None when it is not there."""
        wanted = {"Range": f"bytes={first}-{last}"} if first is not None else {}
        reply = await self._call("GET", _session(native_id, name), headers=wanted)
        if _good(reply, 404, 416).status == 404:
            return None
        if first is None or reply.status == 206:
            return reply.body
        return b"" if reply.status == 416 else reply.body[first : last + 1]

    async def download(self, native_id: str, name: str, target: Path) -> None:
        """Bring a file of any size from the folder of a job. Raises FileNotFoundError."""
        session, base = await self._opened(), await self._versioned()
        url = base + _session(native_id, name)
        began, clock = datetime.now(UTC), time.monotonic()
        part = target.with_name(f".{target.name}.part")
        # No deadline for the whole of it, one for every piece.
        patience = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=self._settings.deadline_s)
        try:
            async with session.get(url, headers=await self._authorized(), timeout=patience) as answer:
                note(["GET", url], answer.status, "", began, time.monotonic() - clock)
                if answer.status == 404:
                    raise FileNotFoundError(f"{name} is not in the folder of {native_id}")
                _good(Reply(answer.status, {}, b"", answer.reason or ""))
                async with aiofiles.open(part, "wb") as stream:
                    async for piece in answer.content.iter_chunked(_PIECE):
                        await stream.write(piece)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ArcError(f"{name} of {native_id} did not arrive: {error}") from error
        await asyncio.to_thread(part.rename, target)

    # ------------------------------------------------------------------------------------------------ one call

    async def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        content_type: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        base = await self._versioned()
        sent = {**(headers or {}), **({"Content-Type": content_type} if content_type else {})}
        return await self._exchange(method, base + path, query or {}, body, sent)

    async def _versioned(self) -> str:
        """Find out once which version of the interface the CE speaks."""
        if not self._base:
            offered = versions(_document(_good(await self._exchange("GET", self._root, {}, None, {}))))
            known = [version for version in _VERSIONS if version in offered]
            if not known:
                raise ArcError(f"{self._root} offers the versions {offered}, we speak {', '.join(_VERSIONS)}")
            self._base = f"{self._root}/{known[0]}"
        return self._base

    async def _exchange(
        self, method: str, url: str, query: Mapping[str, str], body: bytes | None, headers: Mapping[str, str]
    ) -> Reply:
        session = await self._opened()
        sent = {"Accept": "application/json", **headers, **await self._authorized()}
        began, clock = datetime.now(UTC), time.monotonic()
        shown = [method, url + ("?" + "&".join(f"{key}={value}" for key, value in query.items()) if query else "")]
        try:
            async with session.request(
                method, url, params=query, data=body, headers=sent, timeout=self._timeout
            ) as answer:
                reply = Reply(answer.status, dict(answer.headers), await answer.read(), answer.reason or "")
        except (aiohttp.ClientError, TimeoutError) as error:
            said = f"{type(error).__name__}: {error}"
            note(shown, None, said, began, time.monotonic() - clock)
            if isinstance(error, aiohttp.ClientConnectorError):
                raise ArcUnreachableError(f"no connection to {self._settings.url}: {redacted(said)}") from error
            raise ArcError(f"no answer from {self._settings.url}: {redacted(said)}") from error
        said = reply.said if reply.status >= 400 else ""
        note(shown, reply.status, said, began, time.monotonic() - clock)
        if reply.status in _REFUSED:
            raise ArcRefusedError(
                f"{self._settings.url} does not take {self._settings.credential} ({reply.status} {said}): "
                "renew it, or ask the site to authorise it"
            )
        return reply

    async def _authorized(self) -> dict[str, str]:
        """The token as it is now: somebody else renews it."""
        if self._settings.token is None:
            return {}
        try:
            async with aiofiles.open(self._settings.token) as stream:
                token = (await stream.read()).strip()
        except OSError as error:
            raise ArcRefusedError(f"the token {self._settings.token} cannot be read: {error.strerror}") from error
        if not token or not token.isprintable() or not token.isascii():
            raise ArcRefusedError(f"{self._settings.token} holds no token: put a bearer token there")
        # ARC 7 answers a token that has expired with 500 and no word.
        end = expiry(token)
        if end is not None and end <= datetime.now(UTC):
            raise ArcRefusedError(f"the token in {self._settings.token} expired at {end:%Y-%m-%d %H:%M} UTC: renew it")
        return {"Authorization": f"Bearer {token}"}

    async def _opened(self) -> aiohttp.ClientSession:
        try:
            signed = await asyncio.to_thread(self._changed)
            # One at a time: of two that are opened nobody would close the first.
            async with self._opening:
                if self._session is None or signed != self._signed:
                    context = await asyncio.to_thread(self._context)
                    await self.aclose()
                    connector = aiohttp.TCPConnector(ssl=context, limit=self._settings.connections)
                    self._session, self._signed = aiohttp.ClientSession(connector=connector), signed
        except (OSError, ssl.SSLError) as error:
            raise ArcRefusedError(f"{self._settings.credential} cannot be used: {error}") from error
        return self._session

    def _changed(self) -> float:
        return self._settings.certificate.stat().st_mtime if self._settings.certificate else 0.0

    def _context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(capath=self._settings.authorities)
        if self._settings.certificate is not None:
            context.load_cert_chain(self._settings.certificate, self._settings.key)
        return context


def expiry(token: str) -> datetime | None:
    """When a token ends, as it says itself; None when it does not say so."""
    try:
        body = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        return datetime.fromtimestamp(float(claims["exp"]), UTC)
    except (IndexError, KeyError, TypeError, ValueError, OverflowError, OSError):
        return None


def _session(native_id: str, name: str) -> str:
    return f"/jobs/{quote(native_id, safe='')}/session/{quote(name)}"


def _good(reply: Reply, *others: int) -> Reply:
    if reply.status < 300 or reply.status in others:
        return reply
    raise ArcError(f"the CE answered {reply.status}: {reply.said}")


def _document(reply: Reply) -> Any:
    if not reply.body.strip():
        return {}  # a list of nothing
    try:
        return json.loads(reply.body)
    except ValueError as error:
        raise ArcError(f"the CE answered with what is no JSON: {reply.body[:200]!r}") from error
