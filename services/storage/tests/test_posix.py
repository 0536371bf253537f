"""What is special about folders of this machine; the suite for protocols runs in tests/storage."""

import os
from pathlib import Path

import pytest

from khomas.storage.conformance import read
from khomas.storage.conformance.content import problems
from khomas.storage.protocols.interface import Access, Entry, Problem, ProtocolFault
from khomas.storage.protocols.posix import plugin


def test_relative_address_is_refused() -> None:
    with pytest.raises(ValueError, match="absolute"):
        plugin.open(Access("data"))


async def test_missing_root_is_unreachable_and_not_empty(tmp_path: Path) -> None:
    nowhere = plugin.open(Access(str(tmp_path / "nowhere")))

    with pytest.raises(ProtocolFault) as space:
        await nowhere.space()
    with pytest.raises(ProtocolFault) as reading:
        await read(nowhere, "file")
    bulk = [*await nowhere.delete(["file"]), *await nowhere.stat(["file"]), *await nowhere.make_folders(["a"])]

    assert {space.value.problem, reading.value.problem, *problems(bulk)} == {Problem.UNREACHABLE}
    assert not (tmp_path / "nowhere").exists()


async def test_links_lead_out_of_read_only_trees_only(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.write_bytes(b"elsewhere")
    (root / "link").symlink_to(outside)

    (refused,) = await plugin.open(Access(str(root))).stat(["link"])
    (followed,) = await plugin.open(Access(str(root), read_only=True)).stat(["link"])

    assert isinstance(refused, ProtocolFault)
    assert isinstance(followed, Entry)
    assert followed.size_bytes == 9


def test_option_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="speed"):
        plugin.open(Access(str(tmp_path), options={"speed": "high"}))


async def test_pipe_does_not_block_the_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(ProtocolFault, match="regular"):
        await read(plugin.open(Access(str(tmp_path))), "pipe")
