"""What a protocol to a server must do when that stops, comes back, or does not believe us."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Protocol

import pytest

from khomas.storage.conformance.content import MIB, blocks, content, hidden, problems, read, wanted, write
from khomas.storage.landing import Landings
from khomas.storage.protocols.interface import Problem, ProtocolFault, StorageProtocol

_AWAY = {Problem.UNREACHABLE, Problem.PASSING}


class Server(Protocol):
    """A server that can be stopped. Both calls block."""

    def stop(self) -> None:
        """Stop it and break its connections."""

    def start(self) -> None:
        """Start it; return when it answers."""


class ServerConformance:
    """Servers come and go."""

    # More than connections have on the way.
    long_bytes = 96 * MIB

    @pytest.fixture
    async def stopping(self, server: Server) -> AsyncIterator[Server]:
        """Give a server that is there again after the test."""
        yield server
        await asyncio.to_thread(server.start)

    async def test_server_that_is_away_is_unreachable_and_comes_back(
        self, protocol: StorageProtocol, stopping: Server
    ) -> None:
        await write(protocol, "file", b"abc")
        await asyncio.to_thread(stopping.stop)
        with pytest.raises(ProtocolFault) as space:
            await protocol.space()
        with pytest.raises(ProtocolFault) as reading:
            await read(protocol, "file")
        with pytest.raises(ProtocolFault) as writing:
            await protocol.put("new", blocks(b"x"), 1)
        assert {one.value.problem for one in (space, reading, writing)} <= _AWAY
        assert set(problems(await protocol.stat(["file", "file"]))) <= _AWAY
        assert set(problems(await protocol.delete(["file"]))) <= _AWAY
        await asyncio.to_thread(stopping.start)
        assert await read(protocol, "file") == b"abc"

    async def test_reading_from_a_server_that_stops_never_ends_early(
        self, protocol: StorageProtocol, stopping: Server
    ) -> None:
        data = content(self.long_bytes)
        await write(protocol, "long", data)

        async def interrupted() -> None:
            async with aclosing(protocol.get("long")) as stream:
                await anext(stream)
                await asyncio.to_thread(stopping.stop)
                async for _ in stream:
                    pass

        with pytest.raises(ProtocolFault) as caught:
            await interrupted()
        assert caught.value.problem in _AWAY
        await asyncio.to_thread(stopping.start)
        assert await read(protocol, "long") == data

    async def test_writing_to_a_server_that_stops_leaves_nothing_visible(
        self, protocol: StorageProtocol, stopping: Server
    ) -> None:
        data = content(self.long_bytes)
        stops: list[asyncio.Task[None]] = []

        async def interrupting() -> AsyncGenerator[memoryview, None]:
            async for block in blocks(data):
                yield block
                if not stops:
                    stops.append(asyncio.create_task(asyncio.to_thread(stopping.stop)))
                    await asyncio.shield(stops[0])

        async def put() -> None:
            async with await Landings().begin(protocol) as landing:
                await landing.take(interrupting(), wanted(data))
                await landing.publish("long")

        with pytest.raises(ProtocolFault) as caught:
            await put()
        assert caught.value.problem in _AWAY
        # Whoever sends may have given up while the server still ends.
        await asyncio.gather(*stops)
        await asyncio.to_thread(stopping.start)
        assert problems(await protocol.stat(["long"])) == [Problem.ABSENT]
        await write(protocol, "long", data)
        assert await read(protocol, "long") == data

    async def test_idle_connections_that_a_restart_broke_are_no_fault(
        self, protocol: StorageProtocol, stopping: Server
    ) -> None:
        await asyncio.gather(*(write(protocol, f"file{number}", b"abc") for number in range(10)))
        await asyncio.to_thread(stopping.stop)
        await asyncio.to_thread(stopping.start)
        assert problems(await protocol.stat([f"file{number}" for number in range(10)])) == [None] * 10
        assert not await hidden(protocol)


class CredentialConformance:
    """`expired` is opened with a credential whose time is over."""

    async def test_expired_credential_is_told_as_such(self, expired: StorageProtocol) -> None:
        with pytest.raises(ProtocolFault) as writing:
            await write(expired, "file", b"abc")
        with pytest.raises(ProtocolFault) as reading:
            await read(expired, "file")
        assert {writing.value.problem, reading.value.problem} == {Problem.CREDENTIAL}
        assert problems(await expired.stat(["file"])) == [Problem.CREDENTIAL]
        assert problems(await expired.delete(["file"])) == [Problem.CREDENTIAL]
