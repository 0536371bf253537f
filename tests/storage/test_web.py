"""`http` against a plain nginx, with listings of both kinds and with none."""

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from khomas.storage.conformance import MIB, ReadingConformance, read, write
from khomas.storage.conformance.content import content, listed, wanted
from khomas.storage.landing import Landings
from khomas.storage.protocols.interface import Access, Entry, Problem, ProtocolFault, StorageProtocol
from khomas.storage.protocols.posix import plugin as posix
from khomas.storage.protocols.web.protocol import plugin
from khomas.storage.transfers.copying import Copy
from tests.backends.conftest import shared_folder
from tests.testbeds import website
from tests.testbeds.web import WebServer


@pytest.fixture(scope="module")
def server() -> Iterator[WebServer]:
    with website.running(shared_folder("website")) as running:
        yield running


@pytest.fixture
def disk(server: WebServer) -> Iterator[Path]:
    folder = server.open_folder(f"a b-ä-{uuid4().hex}")
    yield folder
    shutil.rmtree(folder)


def opened(server: WebServer, path: str) -> StorageProtocol:
    options = {"authorities": str(server.authorities), "idle_seconds": "40"}
    return plugin.open(Access(f"{server.address}/{path}", options=options))


class TestPages(ReadingConformance):
    """nginx lists on pages; sizes are asked for."""

    many = 2_000
    # nginx leaves out names with a dot in front.
    unlisted = frozenset({".hidden"})

    @pytest.fixture
    async def protocol(self, server: WebServer, disk: Path) -> AsyncIterator[StorageProtocol]:
        protocol = opened(server, f"html/{disk.name}")
        yield protocol
        await protocol.close()


class TestJson(ReadingConformance):
    """nginx lists in JSON, with sizes."""

    unlisted = frozenset({".hidden"})

    @pytest.fixture
    async def protocol(self, server: WebServer, disk: Path) -> AsyncIterator[StorageProtocol]:
        protocol = opened(server, f"json/{disk.name}")
        yield protocol
        await protocol.close()


async def test_server_that_lists_nothing_is_read_by_name(server: WebServer, disk: Path) -> None:
    (disk / "folder").mkdir()
    (disk / "folder/file").write_bytes(b"abc")
    (disk / "page").mkdir()
    (disk / "page/index.html").write_text("<title>Our data</title><a href='file'>file</a>")
    protocol = opened(server, f"none/{disk.name}")
    assert await read(protocol, "folder/file") == b"abc"
    for folder in ("folder", "page"):
        with pytest.raises(ProtocolFault) as caught:
            await listed(protocol, folder)
        assert caught.value.problem is Problem.UNSUPPORTED
    await protocol.close()


async def test_server_that_is_away_is_unreachable_and_comes_back(server: WebServer, disk: Path) -> None:
    (disk / "file").write_bytes(b"abc")
    protocol = opened(server, f"html/{disk.name}")
    assert await read(protocol, "file") == b"abc"
    server.stop()
    with pytest.raises(ProtocolFault) as caught:
        await protocol.space()
    (found,) = await protocol.stat(["file"])
    assert isinstance(found, ProtocolFault)
    assert {caught.value.problem, found.problem} <= {Problem.UNREACHABLE, Problem.PASSING}
    server.start()
    assert await read(protocol, "file") == b"abc"
    await protocol.close()


async def test_files_of_a_web_server_are_copied_and_verified(server: WebServer, disk: Path, tmp_path: Path) -> None:
    data = content(5 * MIB)
    (disk / "from").write_bytes(data)
    source, target = opened(server, f"html/{disk.name}"), posix.open(Access(str(tmp_path)))
    copy = Copy(wanted(data))
    async with await Landings().begin(target) as landing:
        await copy.run(source, "from", landing)
        await landing.publish("to")
    assert await read(target, "to") == data
    with pytest.raises(ProtocolFault) as caught:
        await write(source, "new", b"x")
    assert caught.value.problem is Problem.UNSUPPORTED
    (entry,) = await source.stat(["from"])
    assert isinstance(entry, Entry)
    await source.close()
    await target.close()
