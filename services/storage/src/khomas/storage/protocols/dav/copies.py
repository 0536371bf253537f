"""HTTP third-party copies: one storage fetches from, or sends to, another one.

The status of COPY says only that it has begun: servers answer 201 and fail. The last line of the body is the truth.
https://twiki.cern.ch/twiki/bin/view/LCG/HttpTpc
"""

from collections.abc import AsyncGenerator
from typing import Final

import aiohttp

from khomas.storage.protocols.dav.answers import failure_of, fault_of
from khomas.storage.protocols.dav.session import Session, said
from khomas.storage.protocols.interface import Problem, ProtocolFault, Remote

_LINE: Final = 8192
# What servers without it say.
_FOREIGN: Final = frozenset({400, 404, 405, 409, 412, 501, 502})


class HttpCopies:
    """Copies of the family "http"."""

    family = "http"

    def __init__(self, session: Session) -> None:
        self._session = session

    async def remote(self, path: str, *, write: bool) -> Remote:
        """Return the address with our credential: the other server speaks for us."""
        return Remote(self._session.url(path), await self._session.authorization())

    async def pull(self, source: Remote, path: str) -> AsyncGenerator[int, None]:
        """Let the server fetch."""
        async for mark in self._copied(path, {"Source": source.url} | _given(source)):
            yield mark

    async def push(self, path: str, target: Remote) -> AsyncGenerator[int, None]:
        """Let the server send."""
        async for mark in self._copied(path, {"Destination": target.url} | _given(target)):
            yield mark

    async def _copied(self, path: str, headers: dict[str, str]) -> AsyncGenerator[int, None]:
        # Without "Credential: none" some servers want to have one delegated.
        dialect, told = await self._session.met(), self._session.settings.third_party
        if not (dialect.copies if told is None else told):
            raise ProtocolFault(Problem.UNSUPPORTED, "the server is not known to copy for others")
        url = self._session.url(path)
        wanted = {"Credential": "none", "Overwrite": "F", "RequireChecksumVerification": "false"} | headers
        async with self._session.answer("COPY", url, headers=wanted, fails=False) as reply:
            if reply.status not in (200, 201, 202):
                raise _refused(reply.status, await said(reply))
            last = ""
            async for line in _lines(reply):
                name, _, value = line.partition(":")
                if name == "Stripe Bytes Transferred" and value.strip().isdecimal():
                    yield int(value)
                last = line or last
        if last.lower().startswith("failure:"):
            raise failure_of(last.partition(":")[2].strip())
        if not last.lower().startswith("success"):
            raise ProtocolFault(Problem.PASSING, f"the copy ended without an outcome: {last}")


def _given(remote: Remote) -> dict[str, str]:
    return {f"TransferHeader{name}": value for name, value in remote.headers.items()}


def _refused(status: int, body: str) -> ProtocolFault:
    fault = fault_of("COPY", status, body)
    known = fault.problem is Problem.ABSENT and "unable to" in body.lower()
    if status in _FOREIGN and not known:
        return ProtocolFault(Problem.UNSUPPORTED, fault.message)
    return fault


async def _lines(reply: aiohttp.ClientResponse) -> AsyncGenerator[str, None]:
    """Yield lines; the last one may have no end."""
    rest = b""
    async for piece in reply.content.iter_any():
        *complete, rest = (rest + piece).split(b"\n")
        for line in complete:
            yield line.decode(errors="replace").strip()
        rest = rest[:_LINE]
    if rest.strip():
        yield rest.decode(errors="replace").strip()
