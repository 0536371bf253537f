"""Fetches the keys of a remote issuer and keeps them through its outages."""

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from khomas.kit.auth.keys import Key, KeysUnavailable, keys_of
from khomas.kit.config import ConfigError
from khomas.kit.files import write_atomically

log = logging.getLogger(__name__)

REFRESH = timedelta(hours=6).total_seconds()
STALE = timedelta(hours=48).total_seconds()
# After a fetch, failed or not, an unknown key or a down issuer costs no further fetch for so long.
COOLDOWN = timedelta(seconds=30).total_seconds()
_MAX_BODY = 1024 * 1024
_TIMEOUT = aiohttp.ClientTimeout(total=10)


class RemoteKeys:
    """The keys of one issuer: refreshed every 6 h, good for 48 h without it, kept on disk."""

    def __init__(
        self,
        issuer_url: str,
        folder: Path,
        *,
        jwks_url: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._issuer_url = issuer_url
        self._jwks_url = jwks_url
        for url in filter(None, (issuer_url, jwks_url)):
            _require_https(url)
        self._file = folder / f"{hashlib.sha256(issuer_url.encode()).hexdigest()}.json"
        self._changed: Callable[[], None] = lambda: None
        self._clock = clock
        self._fetching: asyncio.Task[None] | None = None
        self._tried_at = float("-inf")
        self._document: Any = None
        self._keys: Mapping[str, Key] = {}
        self._fetched_at = float("-inf")
        self._load()

    def when_changed(self, call: Callable[[], None]) -> None:
        """Call this after the issuer's keys turn out to be others."""
        self._changed = call

    async def key(self, key_id: str) -> Key | None:
        """Return a key; ask the issuer only when ours are old or lack it, once for all callers."""
        age = self._clock() - self._fetched_at
        if key_id not in self._keys or age > STALE:
            await self._refresh()
        elif age > REFRESH:
            self._start()  # in the background: the keys at hand are good
        if self._clock() - self._fetched_at > STALE:
            raise KeysUnavailable(f"no keys of {self._issuer_url} since {STALE:.0f} s")
        return self._keys.get(key_id)

    async def _refresh(self) -> None:
        if (fetching := self._start()) is not None:
            await asyncio.shield(fetching)

    def _start(self) -> asyncio.Task[None] | None:
        if self._fetching is None or self._fetching.done():
            if self._clock() - self._tried_at < COOLDOWN:
                return None
            self._tried_at = self._clock()
            self._fetching = asyncio.create_task(self._fetch())
        return self._fetching

    async def _fetch(self) -> None:
        try:
            document = await _download(self._issuer_url, self._jwks_url)
            keys = keys_of(document)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            log.warning("auth.keys.unavailable", extra={"issuer": self._issuer_url, "error": repr(error)})
            return
        differs = document != self._document
        self._document, self._keys, self._fetched_at = document, keys, self._clock()
        kept = json.dumps({"fetched_at": self._fetched_at, "document": document})
        await asyncio.to_thread(write_atomically, self._file, kept, 0o600)
        if differs:
            self._changed()

    def _load(self) -> None:
        try:
            kept = json.loads(self._file.read_text())
            self._keys = keys_of(kept["document"])
            self._document, self._fetched_at = kept["document"], float(kept["fetched_at"])
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError) as error:
            log.warning("auth.keys.file_unreadable", extra={"file": str(self._file), "error": repr(error)})


async def _download(issuer_url: str, jwks_url: str) -> Any:
    async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
        if not jwks_url:
            base = issuer_url.rstrip("/")
            discovery = await _json(session, f"{base}/.well-known/openid-configuration")
            jwks_url = _jwks_url_of(discovery, issuer_url)
        return await _json(session, jwks_url)


def _jwks_url_of(discovery: Any, issuer_url: str) -> str:
    if not isinstance(discovery, dict) or discovery.get("issuer") != issuer_url:
        raise ValueError("the discovery document is not of this issuer")
    url = discovery.get("jwks_uri")
    if not isinstance(url, str) or urlsplit(url)[:2] != urlsplit(issuer_url)[:2]:
        raise ValueError("the keys are on another host than the issuer; configure jwks_url to allow that")
    return url


async def _json(session: aiohttp.ClientSession, url: str) -> Any:
    async with session.get(url, allow_redirects=False) as response:
        if response.status != 200:
            raise ValueError(f"{url} answered {response.status}")
        body = b""
        async for piece in response.content.iter_chunked(65536):
            body += piece
            if len(body) > _MAX_BODY:
                raise ValueError(f"{url} sent more than {_MAX_BODY} bytes")
        return json.loads(body)


def _require_https(url: str) -> None:
    parts = urlsplit(url)
    local = parts.hostname in ("127.0.0.1", "::1", "localhost")
    if parts.scheme != "https" and not (parts.scheme == "http" and local):
        raise ConfigError(f"{url} must be an https address")
