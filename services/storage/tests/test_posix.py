"""The posix protocol is what the suite for protocols wants."""

from pathlib import Path

import pytest

from khomas.storage.conformance import ProtocolConformance
from khomas.storage.protocols.interface import Problem, ProtocolFault, StorageProtocol
from khomas.storage.protocols.posix import plugin


class TestPosix(ProtocolConformance):
    @pytest.fixture
    def protocol(self, tmp_path: Path) -> StorageProtocol:
        root = tmp_path / "root"
        root.mkdir()
        return plugin.open(str(root), False)


def test_relative_address_is_refused() -> None:
    with pytest.raises(ValueError, match="absolute"):
        plugin.open("data", False)


async def test_missing_root_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(ProtocolFault) as caught:
        await plugin.open(str(tmp_path / "nowhere"), False).probe()

    assert caught.value.problem is Problem.UNREACHABLE


async def test_links_lead_out_of_read_only_trees_only(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.write_bytes(b"elsewhere")
    (root / "link").symlink_to(outside)

    (refused,) = await plugin.open(str(root), False).stat(["link"])
    (followed,) = await plugin.open(str(root), True).stat(["link"])

    assert isinstance(refused, ProtocolFault)
    assert not isinstance(followed, ProtocolFault)
    assert followed.size_bytes == 9


async def test_pipe_does_not_block_the_reader(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(ProtocolFault, match="regular"):
        plugin.open(str(tmp_path), False).open("pipe")
