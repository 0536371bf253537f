"""Copies from server to server: past us between two XrdHttp, through us where a server cannot."""

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from khomas.storage.conformance import MIB, ThirdPartyConformance, read, write
from khomas.storage.conformance.content import content, wanted
from khomas.storage.landing import Landings
from khomas.storage.protocols.interface import Problem, ProtocolFault, StorageProtocol
from khomas.storage.transfers.copying import Copy
from tests.storage.dav import opened
from tests.testbeds.web import WebServer
from tests.testbeds.xrootd import Xrootd


class TestXrdHttpCopies(ThirdPartyConformance):
    """Both servers pull and push, with a token."""

    @pytest.fixture
    def folder(self, xrootd: Xrootd) -> str:
        name = uuid4().hex
        for server in xrootd.servers:
            server.open_folder(name)
        return name

    @pytest.fixture
    async def protocol(self, xrootd: Xrootd, folder: str) -> AsyncIterator[StorageProtocol]:
        protocol = opened(xrootd.servers[0], folder)
        yield protocol
        await protocol.close()

    @pytest.fixture
    async def other(self, xrootd: Xrootd, folder: str) -> AsyncIterator[StorageProtocol]:
        protocol = opened(xrootd.servers[1], folder)
        yield protocol
        await protocol.close()

    async def test_source_that_does_not_let_the_other_one_in_is_told(
        self, xrootd: Xrootd, protocol: StorageProtocol, other: StorageProtocol, folder: str
    ) -> None:
        await write(protocol, "from", b"abc")
        stranger = opened(xrootd.servers[0], folder, xrootd.issuer.token("elsewhere", "storage.read:/elsewhere"))
        assert stranger.third_party is not None
        assert other.third_party is not None
        remote = await stranger.third_party.remote("from", write=False)
        with pytest.raises(ProtocolFault) as caught:
            _ = [mark async for mark in other.third_party.pull(remote, "to")]
        assert (caught.value.problem, caught.value.other_end) == (Problem.REFUSED, True)
        await stranger.close()


@pytest.fixture
def folders(apache: WebServer, nginx: WebServer) -> str:
    name = uuid4().hex
    for server in (apache, nginx):
        server.open_folder(name)
    return name


async def test_servers_without_copies_are_served_by_us(apache: WebServer, nginx: WebServer, folders: str) -> None:
    source, target = opened(apache, folders), opened(nginx, folders)
    data = content(5 * MIB)
    await write(source, "from", data)
    copy = Copy(wanted(data))
    async with await Landings().begin(target) as landing:
        await copy.run(source, "from", landing)
        await landing.publish("to")
    assert await read(target, "to") == data
    assert copy.streamed_bytes == len(data)
    await source.close()
    await target.close()


@pytest.mark.parametrize("name", ["apache", "nginx"])
async def test_server_that_cannot_copy_for_others_is_recognised(
    name: str, request: pytest.FixtureRequest, xrootd: Xrootd, tmp_path: Path
) -> None:
    server: WebServer = request.getfixturevalue(name)
    protocol, other = opened(server, ""), opened(xrootd.servers[0], "")
    assert protocol.third_party is not None
    assert other.third_party is not None
    await write(protocol, f"from-{tmp_path.name}", b"abc")
    for marks in (
        protocol.third_party.pull(await other.third_party.remote("any", write=False), f"to-{tmp_path.name}"),
        protocol.third_party.push(f"from-{tmp_path.name}", await other.third_party.remote("any", write=True)),
    ):
        with pytest.raises(ProtocolFault) as caught:
            _ = [mark async for mark in marks]
        assert caught.value.problem is Problem.UNSUPPORTED, caught.value.message
    await protocol.close()
    await other.close()
