"""How much a server of WebDAV is asked, of a server that counts."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from khomas.storage.checksums import Algorithm
from khomas.storage.protocols.dav import session
from khomas.storage.protocols.dav.protocol import plugin
from khomas.storage.protocols.interface import Access, Digest, Problem, ProtocolFault, StorageProtocol

NAMES = [f"run {number}" for number in range(20)]


@dataclass(slots=True)
class Asked:
    """What the server was asked."""

    server: str
    digest: str = ""
    # So many questions for a checksum.
    unanswered: int = 0
    methods: Counter[str] = field(default_factory=Counter)
    now: int = 0
    most: int = 0

    async def answer(self, request: web.Request) -> web.Response:
        self.methods[request.method] += 1
        if request.method == "HEAD" and self.methods["HEAD"] <= self.unanswered:
            await asyncio.sleep(3600)
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.01)
        self.now -= 1
        told = {"Digest": self.digest} if self.digest and request.method == "HEAD" else {}
        return web.Response(status=201 if request.method == "MOVE" else 200, headers={"Server": self.server, **told})


@asynccontextmanager
async def opened(asked: Asked) -> AsyncIterator[StorageProtocol]:
    application = web.Application()
    application.router.add_route("*", "/{any:.*}", asked.answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    protocol = plugin.open(Access(f"dav://127.0.0.1:{runner.addresses[0][1]}/data"))
    try:
        yield protocol
    finally:
        await protocol.close()
        await runner.cleanup()


async def test_xrdhttp_is_asked_for_two_checksums_at_once() -> None:
    asked = Asked("XrootD/v5.5.3", digest="adler32=00620062")
    async with opened(asked) as protocol:
        told = await protocol.checksum(NAMES, Algorithm.ADLER32)
    assert [one.value for one in told if isinstance(one, Digest)] == ["00620062"] * len(NAMES)
    assert asked.most == 2
    assert asked.methods["OPTIONS"] == 1


async def test_question_that_stays_without_an_answer_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_UNANSWERED_SECONDS", 0.3)
    asked = Asked("XrootD/v5.5.3", digest="adler32=00620062", unanswered=1)
    async with opened(asked) as protocol:
        (told,) = await protocol.checksum(NAMES[:1], Algorithm.ADLER32)
    assert isinstance(told, Digest)
    assert asked.methods["HEAD"] == 2


async def test_server_that_tells_no_checksums_is_not_asked_for_them_all_the_time() -> None:
    asked = Asked("nginx/1.22.1")
    async with opened(asked) as protocol:
        for _ in range(3):
            told = await protocol.checksum(NAMES[:1], Algorithm.ADLER32)
            assert [one.problem for one in told if isinstance(one, ProtocolFault)] == [Problem.UNSUPPORTED]
    assert asked.methods["HEAD"] == 1


async def test_server_that_overwrites_nothing_is_not_asked_before_a_name_is_given() -> None:
    asked = Asked("nginx/1.22.1")
    async with opened(asked) as protocol:
        assert await protocol.rename([(f".khomas/{name}", name) for name in NAMES]) == [None] * len(NAMES)
    assert (asked.methods["MOVE"], asked.methods["PROPFIND"]) == (len(NAMES), 0)
