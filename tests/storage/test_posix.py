"""POSIX on a disk in memory, on a full disk, and on a mount that may only be read."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from khomas.storage.conformance import GIB, MIB, ProtocolConformance
from khomas.storage.conformance.content import blocks
from khomas.storage.landing import Landings, Wanted
from khomas.storage.protocols.interface import Access, Problem, ProtocolFault, StorageProtocol
from khomas.storage.protocols.posix import plugin
from tests.testbeds import disks


@pytest.fixture
async def protocol(disk: Path) -> AsyncIterator[StorageProtocol]:
    protocol = plugin.open(Access(str(disk)))
    yield protocol
    await protocol.close()


class TestPosix(ProtocolConformance):
    """A disk in memory keeps the contract."""

    @pytest.fixture
    def disk(self, tmp_path: Path) -> Iterator[Path]:
        with disks.memory(tmp_path / "disk", GIB) as disk:
            yield disk

    @pytest.fixture
    async def full(self, tmp_path: Path) -> AsyncIterator[StorageProtocol]:
        with disks.memory(tmp_path / "small", 4 * MIB) as small:
            protocol = plugin.open(Access(str(small)))
            yield protocol
            await protocol.close()

    @pytest.fixture
    async def forbidden(self, tmp_path: Path) -> AsyncIterator[StorageProtocol]:
        (tmp_path / "file").write_bytes(b"abc")
        with disks.read_only(tmp_path):
            protocol = plugin.open(Access(str(tmp_path)))
            yield protocol
            await protocol.close()

    async def test_disk_that_runs_full_on_the_way_is_told(self, full: StorageProtocol, tmp_path: Path) -> None:
        async with await Landings().begin(full) as landing:
            # Another one fills it after we have looked.
            (tmp_path / "small/other").write_bytes(bytes(3 * MIB))
            with pytest.raises(ProtocolFault) as caught:
                await full.put(landing.hidden, blocks(bytes(2 * MIB)), 0)
        assert caught.value.problem is Problem.FULL

    async def test_durable_files_work_alike(self, disk: Path) -> None:
        protocol = plugin.open(Access(str(disk), durable=True))
        async with await Landings().begin(protocol) as landing:
            await landing.take(blocks(b"abc"), Wanted(3, ""))
            await landing.publish("folder/file")
        assert (disk / "folder/file").read_bytes() == b"abc"
        await protocol.close()


class TestDisk(ProtocolConformance):
    """The file system of this machine keeps the contract."""

    @pytest.fixture
    def disk(self, tmp_path: Path) -> Path:
        (tmp_path / "disk").mkdir()
        return tmp_path / "disk"

    full = TestPosix.full
    forbidden = TestPosix.forbidden
