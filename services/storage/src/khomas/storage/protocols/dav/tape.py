"""Recalls by the WLCG Tape REST interface, version 1: dCache, EOS with CTA, StoRM.

https://github.com/wlcg-storage/wlcg-tape-rest-api; where it is tells `/.well-known/wlcg-tape-rest-api` of the server.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final
from urllib.parse import quote, urljoin, urlsplit

from khomas.storage.protocols.dav.session import Session
from khomas.storage.protocols.interface import Locality, Problem, ProtocolFault, Recall, Recalling

_WELL_KNOWN: Final = "/.well-known/wlcg-tape-rest-api"
_BODY: Final = 64 * 1024 * 1024
_BATCH: Final = 10_000
_ANY_REQUEST: Final = "*"
_LOCALITIES: Final = {
    "DISK": Locality.DISK,
    "TAPE": Locality.TAPE,
    "DISK_AND_TAPE": Locality.BOTH,
    "LOST": Locality.LOST,
    "NONE": Locality.NONE,
    "UNAVAILABLE": Locality.UNAVAILABLE,
}
_STATES: Final = {
    "SUBMITTED": Recall.WAITING,
    "STARTED": Recall.RUNNING,
    "COMPLETED": Recall.DONE,
    "FAILED": Recall.FAILED,
    "CANCELLED": Recall.CANCELLED,
}


class RestTape:
    """The tape behind a server of WebDAV."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._base = ""

    async def locality(self, paths: Sequence[str]) -> list[Locality | ProtocolFault]:
        """Ask for all of them at once."""
        try:
            found = await self._archive_info(paths)
        except ProtocolFault as fault:
            return [fault for _ in paths]
        return [_locality(found.get(self._on(path))) for path in paths]

    async def stage(self, paths: Sequence[str], lifetime: timedelta) -> list[str | ProtocolFault]:
        """Send one request for at most ten thousand files."""
        answers: list[str | ProtocolFault] = []
        for start in range(0, len(paths), _BATCH):
            some = paths[start : start + _BATCH]
            seconds = f"PT{max(1, round(lifetime.total_seconds()))}S"
            files = [{"path": self._on(path), "diskLifetime": seconds} for path in some]
            answer: str | ProtocolFault
            try:
                answer = str((await self._sent("POST", "stage", {"files": files}))["requestId"])
            except ProtocolFault as fault:
                answer = fault
            except (KeyError, TypeError):
                answer = ProtocolFault(Problem.PASSING, "the tape system answered without the id of a request")
            answers += [answer] * len(some)
        return answers

    async def staging(self, request: str, paths: Sequence[str]) -> list[Recalling | ProtocolFault]:
        """Ask for the request, with all of its files; without one, whether they are on disk."""
        if request == _ANY_REQUEST:
            return [_by_locality(one) for one in await self.locality(paths)]
        try:
            answer = await self._sent("GET", f"stage/{quote(request, safe='')}")
        except ProtocolFault as fault:
            if fault.problem is not Problem.ABSENT:
                return [fault for _ in paths]
            answer = {}
        told = _by_path(answer.get("files", ()) if isinstance(answer, dict) else ())
        return [_recalling(told.get(self._on(path))) for path in paths]

    async def cancel(self, request: str, paths: Sequence[str]) -> list[ProtocolFault | None]:
        """Take files out of a request."""
        return await self._told(f"stage/{quote(request, safe='')}/cancel", request, paths)

    async def release(self, request: str, paths: Sequence[str]) -> list[ProtocolFault | None]:
        """End the time of files of a request."""
        return await self._told(f"release/{quote(request, safe='')}", request, paths)

    # ------------------------------------------------------------------------------------------------ requests

    async def _told(self, where: str, request: str, paths: Sequence[str]) -> list[ProtocolFault | None]:
        if request == _ANY_REQUEST or not paths:
            # Nobody knows the request: it ends by itself.
            return [None for _ in paths]
        try:
            await self._sent("POST", where, {"paths": [self._on(path) for path in paths]})
        except ProtocolFault as fault:
            return [None if fault.problem is Problem.ABSENT else fault for _ in paths]
        return [None for _ in paths]

    async def _archive_info(self, paths: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
        found: dict[str, Mapping[str, Any]] = {}
        for start in range(0, len(paths), _BATCH):
            asked = [self._on(path) for path in paths[start : start + _BATCH]]
            found |= _by_path(await self._sent("POST", "archiveinfo", {"paths": asked}))
        return found

    async def _sent(self, method: str, where: str, content: Any = None) -> Any:
        if not self._base:
            self._base = await self._found()
        return await self._answer(method, f"{self._base}/{where}", content)

    async def _found(self) -> str:
        """Return where the interface is, as the server says."""
        told = await self._answer("GET", urljoin(self._session.root, _WELL_KNOWN))
        endpoints = told.get("endpoints", ()) if isinstance(told, dict) else ()
        uri = next((str(one.get("uri", "")) for one in endpoints if one.get("version") == "v1"), "")
        if not uri:
            raise ProtocolFault(Problem.CONFIGURATION, f"the server tells no Tape REST interface v1 at {_WELL_KNOWN}")
        if urlsplit(uri).scheme != urlsplit(self._session.root).scheme:
            raise ProtocolFault(Problem.CONFIGURATION, f"the server sends us to {uri}, where our token must not go")
        return uri.rstrip("/")

    async def _answer(self, method: str, url: str, content: Any = None) -> Any:
        headers = {"Accept": "application/json"}
        data = None
        if content is not None:
            headers["Content-Type"], data = "application/json", json.dumps(content).encode()
        async with self._session.answer(method, url, headers=headers, data=data) as reply:
            body = await reply.content.read(_BODY) if reply.content_length != 0 else b""
            while not reply.content.at_eof():
                body += await reply.content.read(_BODY)
        try:
            return json.loads(body) if body.strip() else {}
        except ValueError as error:
            raise ProtocolFault(Problem.PASSING, f"{method} {url} was answered with what is no JSON") from error

    def _on(self, path: str) -> str:
        return f"{self._session.root_path}{path}"


def _by_path(told: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    # Some servers answer with two slashes where one was asked.
    return {"/" + str(one.get("path", "")).lstrip("/"): one for one in told}


def _locality(told: Mapping[str, Any] | None) -> Locality | ProtocolFault:
    if told is None:
        return ProtocolFault(Problem.PASSING, "the tape system says nothing about this file")
    known = _LOCALITIES.get(str(told.get("locality", "")).upper())
    if known is not None:
        return known
    return ProtocolFault(Problem.ABSENT, str(told.get("error", "")) or "the tape system does not know this file")


def _by_locality(found: Locality | ProtocolFault) -> Recalling | ProtocolFault:
    if isinstance(found, ProtocolFault):
        return found
    if found in (Locality.DISK, Locality.BOTH):
        return Recalling(Recall.DONE)
    return Recalling(Recall.UNKNOWN, "the tape system does not say who has asked for it")


def _recalling(told: Mapping[str, Any] | None) -> Recalling:
    if told is None:
        return Recalling(Recall.UNKNOWN, "the tape system does not know the request")
    message = str(told.get("error") or "")
    if told.get("onDisk"):
        return Recalling(Recall.DONE)
    state = _STATES.get(str(told.get("state", "")).upper())
    if state is None:
        # Servers tell a state, or whether it is on disk.
        state = Recall.FAILED if message else Recall.WAITING
    return Recalling(state, message)
