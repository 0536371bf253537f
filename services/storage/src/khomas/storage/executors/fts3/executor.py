"""The client of FTS3: a job for each batch, kept connections, a token or a delegated proxy."""

import asyncio
import ssl
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
from pydantic import BaseModel, ConfigDict, Field

from khomas.kit.credentials import CredentialProvider
from khomas.storage.executors.fts3.answers import job, standings
from khomas.storage.executors.fts3.delegation import signed
from khomas.storage.executors.interface import ExecutorFault, Order, Plugin, Settings, Standing

# A delegated proxy is renewed when it has less left than this.
_LEFT: Final = timedelta(hours=4)
_SAID: Final = 500
_GONE: Final = 404
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


class FtsOptions(BaseModel):
    """What can be set for one server."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Folder with hashed certificates of authorities, or a file with them. Empty = those of the system.
    authorities: Path | None = None
    # Whose checksums FTS3 compares besides ours: "both", "source", "target", "none".
    verify_checksum: str = Field(default="both", pattern="^(both|source|target|none)$")
    delegation_hours: int = Field(default=12, gt=4, le=168)
    # Until an answer.
    seconds: float = Field(default=60.0, gt=0)


class Fts3:
    """One FTS3 server."""

    def __init__(self, address: str, credential: CredentialProvider | None, options: FtsOptions) -> None:
        self._address = address.rstrip("/")
        self._credential = credential
        self._options = options
        self._session: aiohttp.ClientSession | None = None
        # Of the proxy that its connections speak for.
        self._stamp = 0
        self._delegated_until = datetime.min.replace(tzinfo=UTC)
        self._delegating = asyncio.Lock()

    async def take(self, orders: Sequence[Order]) -> str:
        """Submit a job."""
        await self._delegate()
        answer = await self._asked("POST", "/jobs", json=job(orders, self._options.verify_checksum))
        if not isinstance(answer, Mapping) or not answer.get("job_id"):
            raise ExecutorFault(f"the answer to a job has no job_id: {answer}"[:_SAID], passing=True)
        return str(answer["job_id"])

    async def poll(self, batches: Sequence[str]) -> Mapping[str, Mapping[str, Standing]]:
        """Ask for all files of each job at once."""
        found: dict[str, Mapping[str, Standing]] = {}
        for batch in batches:
            answer = await self._asked("GET", f"/jobs/{batch}/files", absent=True)
            if answer is not None:
                found[batch] = standings(answer if isinstance(answer, list) else [answer])
        return found

    async def cancel(self, batches: Sequence[str]) -> None:
        """Cancel jobs."""
        if batches:
            await self._asked("DELETE", f"/jobs/{','.join(batches)}", absent=True)

    async def close(self) -> None:
        """End connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _delegate(self) -> None:
        """Give the server a proxy of ours, when it needs one and has none that lasts."""
        proxy = self._file("proxy")
        if proxy is None:
            return
        async with self._delegating:
            if self._delegated_until > datetime.now(UTC) + _LEFT:
                return
            lifetime = timedelta(hours=self._options.delegation_hours)
            us = (await self._asked("GET", "/whoami"))["delegation_id"]
            request = await self._asked("GET", f"/delegation/{us}/request", text=True)
            try:
                chain, until = signed(request, await asyncio.to_thread(proxy.read_bytes), lifetime)
            except (ValueError, OSError) as error:
                raise ExecutorFault(f"no proxy can be delegated: {error}", passing=False) from error
            await self._asked("PUT", f"/delegation/{us}/credential", data=chain, text=True)
            self._delegated_until = until

    def _file(self, kind: str) -> Path | None:
        return self._credential.files().get(kind) if self._credential is not None else None

    async def _headers(self) -> dict[str, str]:
        token = self._file("token")
        if token is None:
            return {}
        try:
            return {"Authorization": f"Bearer {(await asyncio.to_thread(token.read_text)).strip()}"}
        except OSError as error:
            raise ExecutorFault(f"the token cannot be read: {error.strerror}", passing=True) from error

    async def _asked(self, method: str, path: str, *, absent: bool = False, text: bool = False, **body: Any) -> Any:
        """Return an answer, None for what is not there if it may be `absent`; raise ExecutorFault for a bad one."""
        try:
            headers = await self._headers()
            session = await self._open()
            async with session.request(method, f"{self._address}{path}", headers=headers, **body) as response:
                if absent and response.status == _GONE:
                    return None
                if response.status >= 400:
                    said = (await response.text())[:_SAID]
                    passing = response.status in _PASSING
                    raise ExecutorFault(f"{method} {path}: HTTP {response.status}: {said}", passing=passing)
                return await (response.text() if text else response.json(content_type=None))
        except ValueError as error:
            raise ExecutorFault(f"{method} {path}: the answer is no JSON: {error}", passing=True) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ExecutorFault(f"{method} {path}: {str(error) or type(error).__name__}", passing=True) from error

    async def _open(self) -> aiohttp.ClientSession:
        proxy = self._file("proxy")
        stamp = (await asyncio.to_thread(proxy.stat)).st_mtime_ns if proxy is not None else 0
        if self._session is not None and stamp != self._stamp:
            # Connections speak for a proxy that has been replaced.
            await self.close()
        if self._session is None:
            context = _trust(self._options.authorities)
            if proxy is not None:
                context.load_cert_chain(proxy)
            self._stamp = stamp
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=context),
                timeout=aiohttp.ClientTimeout(total=self._options.seconds),
                trust_env=False,
            )
        return self._session


def _trust(authorities: Path | None) -> ssl.SSLContext:
    if authorities is None:
        return ssl.create_default_context()
    if authorities.is_dir():
        return ssl.create_default_context(capath=str(authorities))
    return ssl.create_default_context(cafile=str(authorities))


def _opened(settings: Settings) -> Fts3:
    parts = urlsplit(settings.address)
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise ValueError(f"the address is https://host:8446, and not {settings.address}")
    return Fts3(settings.address, settings.credential, FtsOptions.model_validate(dict(settings.options)))


plugin = Plugin(open=_opened)
