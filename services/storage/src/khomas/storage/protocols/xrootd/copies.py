"""Third-party copies between XRootD servers: the one that gets the file fetches it from the other one.

Both files are opened with a common key; the second `sync` of the new file is the copy. The library has the same as a
blocking call, which looks every 2.5 s whether it is done: https://xrootd.slac.stanford.edu/doc/dev56/tpc_protocol.htm
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any, Final
from urllib.parse import urlsplit

from XRootD import client
from XRootD.client.flags import AccessMode, OpenFlags

from khomas.storage.protocols.interface import Problem, ProtocolFault, Remote
from khomas.storage.protocols.xrootd.answers import problem_of
from khomas.storage.protocols.xrootd.data import OpenFile, opened
from khomas.storage.protocols.xrootd.library import call
from khomas.storage.protocols.xrootd.server import Server

_FILE: Final = AccessMode.UR | AccessMode.UW | AccessMode.GR | AccessMode.OR
_LOOK_SECONDS: Final = 1.0
_DAYS: Final = 7 * 86400.0
# Where two do not let each other in, or do not reach each other.
_BETWEEN_THEM: Final = frozenset({Problem.PASSING, Problem.CREDENTIAL, Problem.REFUSED})
# How another storage is told what goes along with requests.
_REQUEST: Final = "request"
_LOGIN: Final = "login"


class RootCopies:
    """Copies of the family "root"."""

    family = "root"

    def __init__(self, server: Server) -> None:
        self._server = server

    async def remote(self, path: str, *, write: bool) -> Remote:
        """Return the address; what lets in goes apart from it."""
        ticket = await self._server.ticket()
        place = self._server.place
        # A name that cannot be used is told now.
        ticket.on(path)
        url = f"{place.scheme}://{place.server}/{place.at(path)}"
        return Remote(url, {_REQUEST: ticket.request, _LOGIN: ticket.login})

    async def pull(self, source: Remote, path: str) -> AsyncGenerator[int, None]:
        """Have our server fetch."""
        async for mark in self._copied(source, await self.remote(path, write=True), ours_is_source=False):
            yield mark

    async def push(self, path: str, target: Remote) -> AsyncGenerator[int, None]:
        """Have the other server fetch from ours: the same copy, which is tried last before the bytes go through us."""
        try:
            async for mark in self._copied(await self.remote(path, write=False), target, ours_is_source=True):
                yield mark
        except ProtocolFault as fault:
            if fault.problem in _BETWEEN_THEM:
                message = f"the servers do not copy for each other: {fault.message}"
                raise ProtocolFault(Problem.UNSUPPORTED, message) from fault
            raise

    async def _copied(self, source: Remote, target: Remote, *, ours_is_source: bool) -> AsyncGenerator[int, None]:
        await self._can_copy(source, other_end=not ours_is_source)
        await self._can_copy(target, other_end=ours_is_source)
        size = await self._size(source, other_end=not ours_is_source)
        key = secrets.token_hex(16)
        seconds = self._server.settings.idle_seconds
        fetching = [
            f"tpc.key={key}", f"tpc.src={_host(source)}", f"tpc.lfn={_path(source)}", "tpc.spr=root", "tpc.tpr=root",
            "tpc.stage=copy", f"oss.asize={size}",
        ]  # fmt: skip
        giving = [f"tpc.key={key}", f"tpc.dst={_name(target)}", "tpc.stage=copy"]
        async with AsyncExitStack() as stack:
            try:
                there = await stack.enter_async_context(opened(_url(target, *fetching), OpenFlags.NEW, _FILE, seconds))
                # They meet: the one that gets has told what it waits for.
                await there.sync()
            except ProtocolFault as fault:
                raise _of(fault, other_end=ours_is_source) from fault
            try:
                here = opened(_url(source, *giving), OpenFlags.READ, AccessMode.NONE, seconds)
                await stack.enter_async_context(here)
            except ProtocolFault as fault:
                raise _of(fault, other_end=not ours_is_source) from fault
            try:
                async for mark in self._going(there, target):
                    yield mark
            except ProtocolFault as fault:
                raise _of(fault, other_end=_other_end(fault, ours_is_source=ours_is_source)) from fault

    async def _going(self, file: OpenFile, target: Remote) -> AsyncGenerator[int, None]:
        """Have it copied; a copy that does not grow any more is given up."""
        loop = asyncio.get_running_loop()
        seen, grown = 0, loop.time()
        copying = asyncio.create_task(file.sync(_DAYS))
        try:
            while not (await asyncio.wait([copying], timeout=_LOOK_SECONDS))[0]:
                if (size := await self._size(target, other_end=False)) > seen:
                    seen, grown = size, loop.time()
                    yield seen
                elif loop.time() - grown > 2 * self._server.settings.idle_seconds:
                    raise ProtocolFault(Problem.PASSING, f"the copy has stood still at {seen} bytes")
            copying.result()
        finally:
            copying.cancel()

    async def _can_copy(self, remote: Remote, *, other_end: bool) -> None:
        """Raise UNSUPPORTED unless the server says that it copies for others."""
        answer = await self._asked(remote, "query", 7, "tpc", other_end=other_end)
        if not (answer or b"").startswith(b"1"):
            raise ProtocolFault(Problem.UNSUPPORTED, f"{_host(remote)} does not copy for others", other_end=other_end)

    async def _size(self, remote: Remote, *, other_end: bool) -> int:
        found = await self._asked(remote, "stat", _with(remote, _path(remote)), other_end=other_end)
        return int(found.size)

    async def _asked(self, remote: Remote, action: str, *arguments: Any, other_end: bool) -> Any:
        login = remote.headers.get(_LOGIN, "")
        parts = urlsplit(remote.url)
        system = client.FileSystem(f"{parts.scheme}://{parts.netloc}/{'?' if login else ''}{login}")
        try:
            return await call(getattr(system, action), *arguments, seconds=self._server.settings.seconds)
        except ProtocolFault as fault:
            raise _of(fault, other_end=other_end) from fault


def _host(remote: Remote) -> str:
    return urlsplit(remote.url).netloc


def _name(remote: Remote) -> str:
    return urlsplit(remote.url).hostname or ""


def _path(remote: Remote) -> str:
    # Not what urlsplit says: it ends paths at a hash sign.
    return remote.url.partition("://")[2].partition("/")[2]


def _with(remote: Remote, path: str, *more: str) -> str:
    words = "&".join(filter(None, (*more, remote.headers.get(_REQUEST, ""))))
    return f"{path}?{words}" if words else path


def _url(remote: Remote, *more: str) -> str:
    return _with(remote, remote.url, *more, remote.headers.get(_LOGIN, ""))


def _of(fault: ProtocolFault, *, other_end: bool) -> ProtocolFault:
    return ProtocolFault(fault.problem, fault.message, other_end=other_end)


def _other_end(fault: ProtocolFault, *, ours_is_source: bool) -> bool:
    """Tell who is to blame when the server that fetches fails: space is its own; what is absent is at the source."""
    own = problem_of(fault.message) in (Problem.FULL, Problem.REFUSED)
    return own if ours_is_source else not own and fault.problem is not Problem.FULL
