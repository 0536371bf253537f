"""`cvmfs` on a tree that is mounted to be read."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from khomas.storage.conformance import ReadingConformance, read
from khomas.storage.conformance.content import look, problems
from khomas.storage.protocols.cvmfs import plugin
from khomas.storage.protocols.interface import Access, Problem, StorageProtocol
from tests.testbeds import disks


class TestCvmfs(ReadingConformance):
    """A repository keeps what reading takes."""

    @pytest.fixture
    def disk(self, tmp_path: Path) -> Path:
        (tmp_path / "repository").mkdir()
        return tmp_path / "repository"

    @pytest.fixture
    async def protocol(self, disk: Path) -> AsyncIterator[StorageProtocol]:
        protocol = plugin.open(Access(str(disk)))
        yield protocol
        await protocol.close()

    async def test_files_have_paths_for_jobs(self, protocol: StorageProtocol, disk: Path) -> None:
        (disk / "file").write_bytes(b"abc")
        assert protocol.local_path("file") == disk / "file"

    async def test_links_between_repositories_are_followed(
        self, protocol: StorageProtocol, disk: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "other").mkdir()
        (tmp_path / "other/file").write_bytes(b"abc")
        (disk / "link").symlink_to(tmp_path / "other/file")
        assert await read(protocol, "link") == b"abc"

    async def test_repository_that_is_not_mounted_is_unreachable(self, tmp_path: Path) -> None:
        protocol = plugin.open(Access(str(tmp_path / "not mounted")))
        assert problems([await look(protocol, "file")]) == [Problem.UNREACHABLE]
        await protocol.close()


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "mounted").mkdir()
    (tmp_path / "mounted/file").write_bytes(b"abc")
    with disks.read_only(tmp_path / "mounted") as folder:
        yield folder


async def test_tree_that_may_only_be_read_is_read(mounted: Path) -> None:
    protocol = plugin.open(Access(str(mounted)))
    assert await read(protocol, "file") == b"abc"
    await protocol.close()


@pytest.mark.parametrize(("address", "options"), [("cvmfs", {}), ("/a/../b", {}), ("/cvmfs/a", {"x": "y"})])
def test_wrong_address_is_refused(address: str, options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="repository"):
        plugin.open(Access(address, options=options))
