"""`gsiftp` against a globus-gridftp-server with GSI, through Debian's gfal2. Of `srm` there is no server to try."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from uuid import uuid4

import pytest

from khomas.kit.credentials.x509 import ProxyFile, ProxyOptions
from khomas.storage.conformance import (
    MIB,
    CredentialConformance,
    ProtocolConformance,
    ServerConformance,
    ThirdPartyConformance,
    read,
    write,
)
from khomas.storage.conformance.content import content, hidden, problems
from khomas.storage.protocols.gfal.answers import fault_of
from khomas.storage.protocols.gfal.protocol import plugin
from khomas.storage.protocols.interface import Access, Problem, ProtocolFault, StorageProtocol
from tests.backends.conftest import shared_folder
from tests.testbeds import gridftp as gridftp_bed
from tests.testbeds.gridftp import GridFtp
from tests.testbeds.web import WebServer


@pytest.fixture(scope="module")
def gridftp() -> Iterator[GridFtp]:
    with gridftp_bed.running(shared_folder("gridftp")) as running:
        yield running


def opened(gridftp: GridFtp, server: WebServer, folder: str, proxy: Path | None = None) -> StorageProtocol:
    credential = ProxyFile("test", ProxyOptions(file=proxy or gridftp.proxy))
    options = {"authorities": str(gridftp.people.authorities), "idle_seconds": "60", "connections": "4"}
    return plugin.open(Access(f"{server.address}/{folder}", credential=credential, options=options))


class TestGridFtp(ProtocolConformance, ServerConformance, CredentialConformance):
    """The server keeps the contract, as far as gfal2 can tell."""

    # Listings drop blanks at the end of names.
    refused = frozenset({" both ends "})

    @pytest.fixture
    def server(self, gridftp: GridFtp) -> WebServer:
        return gridftp.servers[0]

    @pytest.fixture
    def disk(self, server: WebServer) -> Iterator[Path]:
        folder = server.open_folder(f"a b-ä-{uuid4().hex}")
        yield folder
        shutil.rmtree(folder)

    @pytest.fixture
    async def protocol(self, gridftp: GridFtp, server: WebServer, disk: Path) -> AsyncIterator[StorageProtocol]:
        protocol = opened(gridftp, server, disk.name)
        yield protocol
        await protocol.close()

    @pytest.fixture
    async def full(self, gridftp: GridFtp, server: WebServer) -> AsyncIterator[StorageProtocol]:
        protocol = opened(gridftp, server, "full")
        yield protocol
        await protocol.close()
        for left in (server.data / "full").iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()

    @pytest.fixture
    async def forbidden(self, gridftp: GridFtp, server: WebServer) -> AsyncIterator[StorageProtocol]:
        protocol = opened(gridftp, server, "forbidden")
        yield protocol
        await protocol.close()

    @pytest.fixture
    async def expired(self, gridftp: GridFtp, server: WebServer, tmp_path: Path) -> AsyncIterator[StorageProtocol]:
        protocol = opened(gridftp, server, "", tmp_path / "no-proxy")
        yield protocol
        await protocol.close()

    async def test_no_space_is_told_and_leaves_nothing(self, full: StorageProtocol) -> None:
        """The server breaks the data connection, and gfal2 hears the reason or does not."""
        with pytest.raises(ProtocolFault) as caught:
            await write(full, "file", content(32 * MIB))
        assert caught.value.problem in {Problem.FULL, Problem.PASSING}, caught.value.message
        assert problems(await full.stat(["file"])) == [Problem.ABSENT]
        assert not await hidden(full)
        await write(full, "small", b"fits")
        assert await read(full, "small") == b"fits"


class TestGridFtpCopies(ThirdPartyConformance):
    """Two servers copy; commands come from us, bytes do not."""

    @pytest.fixture
    def folder(self, gridftp: GridFtp) -> str:
        name = uuid4().hex
        for server in gridftp.servers:
            server.open_folder(name)
        return name

    @pytest.fixture
    async def protocol(self, gridftp: GridFtp, folder: str) -> AsyncIterator[StorageProtocol]:
        protocol = opened(gridftp, gridftp.servers[0], folder)
        yield protocol
        await protocol.close()

    @pytest.fixture
    async def other(self, gridftp: GridFtp, folder: str) -> AsyncIterator[StorageProtocol]:
        protocol = opened(gridftp, gridftp.servers[1], folder)
        yield protocol
        await protocol.close()


async def test_proxy_with_attributes_of_a_vo_is_let_in(gridftp: GridFtp, tmp_path: Path) -> None:
    protocol = opened(gridftp, gridftp.servers[0], "", gridftp.people.proxy(tmp_path / "proxy"))
    folder = gridftp.servers[0].open_folder(uuid4().hex)
    assert problems(await protocol.stat([folder.name])) == [None]
    await protocol.close()


async def test_nobody_is_let_in_without_a_proxy(gridftp: GridFtp) -> None:
    options = {"authorities": str(gridftp.people.authorities)}
    protocol = plugin.open(Access(gridftp.servers[0].address, options=options))
    (found,) = problems(await protocol.stat(["forbidden"]))
    assert found is Problem.CREDENTIAL
    await protocol.close()


async def test_process_that_dies_is_started_again(gridftp: GridFtp) -> None:
    folder = gridftp.servers[0].open_folder(uuid4().hex)
    protocol = opened(gridftp, gridftp.servers[0], folder.name)
    await write(protocol, "file", b"abc")
    running = protocol._helper._running  # type: ignore[attr-defined]
    running._process.kill()
    await running._process.wait()
    async with asyncio.timeout(60):
        while not running.dead:
            await asyncio.sleep(0.01)
    assert await read(protocol, "file") == b"abc"
    await protocol.close()


async def test_reading_goes_on_where_it_was_when_the_process_dies(gridftp: GridFtp) -> None:
    folder, data = gridftp.servers[0].open_folder(uuid4().hex), content(48 * MIB)
    protocol = opened(gridftp, gridftp.servers[0], folder.name)
    await write(protocol, "file", data)
    got = bytearray()
    async with aclosing(protocol.get("file")) as stream:
        async for piece in stream:
            if not got:
                protocol._helper._running._process.kill()  # type: ignore[attr-defined]
            got += piece
    assert got == data
    await protocol.close()


async def test_python_without_gfal_is_told(tmp_path: Path) -> None:
    protocol = plugin.open(Access("gsiftp://localhost:1/x", options={"python": shutil.which("true") or "true"}))
    with pytest.raises(ProtocolFault, match="python3-gfal2") as caught:
        await protocol.space()
    assert caught.value.problem is Problem.CONFIGURATION
    await protocol.close()


@pytest.mark.parametrize("address", ["gsiftp:///x", "https://host/x", "srm://host/x?SFN=/y"])
def test_wrong_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="gsiftp://"):
        plugin.open(Access(address))


def test_number_of_the_server_counts_before_that_of_the_library() -> None:
    said = "the server responded with an error 451 451-GridFTP-Errno: 28  451-GridFTP-Reason: System error in write"
    assert fault_of([70, said]).problem is Problem.FULL
    assert fault_of([70, "globus_ftp_client: the server responded with an error 500"]).problem is Problem.PASSING
