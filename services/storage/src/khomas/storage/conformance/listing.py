"""Folders and what is in them."""

import asyncio
import itertools
from contextlib import aclosing
from pathlib import Path

import pytest

from khomas.storage.conformance.content import NAMES, blocks, listed, problems, write
from khomas.storage.protocols.interface import Entry, Kind, Problem, ProtocolFault, StorageProtocol

_AT_ONCE = 20


class Listing:
    """Listings of any length, and folders."""

    # Entries of one folder.
    many = 10_000
    # Names that the server keeps and gives, but does not list.
    unlisted: frozenset[str] = frozenset()
    # Names that cannot be used there, and are refused.
    refused: frozenset[str] = frozenset()

    @pytest.fixture
    def disk(self) -> Path | None:
        """Give the folder of this machine where the files of `protocol` lie, if there is one."""
        return None

    @pytest.fixture(autouse=True)
    def _disk(self, disk: Path | None) -> None:
        self.planting = disk

    async def planted(self, protocol: StorageProtocol, folder: str, number: int) -> list[str]:
        """Make many small files."""
        paths = [f"{folder}/file {one}" for one in range(number)]
        if self.planting is not None:
            await asyncio.to_thread(_plant, self.planting, paths)
            return paths
        (fault,) = await protocol.make_folders([folder])
        assert fault is None
        for some in itertools.zip_longest(*[iter(paths)] * _AT_ONCE):
            await asyncio.gather(*(protocol.put(path, blocks(b"x"), 1) for path in some if path))
        return paths

    async def test_names_are_listed_as_they_are(self, protocol: StorageProtocol) -> None:
        for name in set(NAMES) - self.refused:
            await write(protocol, f"folder & all/{name}", name.encode())
        found = {entry.path: entry.size_bytes for entry in await listed(protocol, "folder & all")}
        assert found == {
            f"folder & all/{name}": len(name.encode()) for name in set(NAMES) - self.unlisted - self.refused
        }

    async def test_listing_tells_kinds_and_only_what_is_directly_there(self, protocol: StorageProtocol) -> None:
        await write(protocol, "top/file", b"abc")
        await write(protocol, "top/folder/below", b"d")
        entries = {one.path: (one.kind, one.size_bytes) for one in await listed(protocol, "top")}
        assert entries == {"top/file": (Kind.FILE, 3), "top/folder": (Kind.FOLDER, 0)}

    async def test_root_is_listed(self, protocol: StorageProtocol) -> None:
        await write(protocol, "file", b"abc")
        assert ("file", Kind.FILE) in [(one.path, one.kind) for one in await listed(protocol, "")]

    async def test_missing_folder_is_absent(self, protocol: StorageProtocol) -> None:
        with pytest.raises(ProtocolFault) as caught:
            await listed(protocol, "nothing")
        assert caught.value.problem is Problem.ABSENT

    async def test_listing_is_streamed(self, protocol: StorageProtocol) -> None:
        expected = await self.planted(protocol, "crowd", self.many)
        async with aclosing(protocol.entries("crowd")) as stream:
            pages = [[entry.path for entry in page] async for page in stream]
        assert sorted(path for page in pages for path in page) == sorted(expected)
        assert max(map(len, pages)) <= self.many // 2

    async def test_listing_that_is_left_early_does_no_harm(self, protocol: StorageProtocol) -> None:
        await self.planted(protocol, "crowd", self.many)
        for _ in range(20):
            async with aclosing(protocol.entries("crowd")) as stream:
                async for _ in stream:
                    break
        assert len(await listed(protocol, "crowd")) == self.many

    async def test_folders_are_made_with_those_above(self, protocol: StorageProtocol) -> None:
        assert await protocol.make_folders(["a/b/c", "a/b/d", "a/b/c", "e"]) == [None] * 4
        assert await protocol.make_folders(["a/b/c"]) == [None]
        if protocol.abilities.folders:
            assert {one.path for one in await listed(protocol, "a/b")} == {"a/b/c", "a/b/d"}
            found = await protocol.stat(["a/b", "e"])
            assert [one.kind for one in found if isinstance(one, Entry)] == [Kind.FOLDER, Kind.FOLDER]

    async def test_folder_where_a_file_is_is_refused(self, protocol: StorageProtocol) -> None:
        await write(protocol, "file", b"abc")
        faults = problems(await protocol.make_folders(["file", "file/below"]))
        if protocol.abilities.folders:
            assert set(faults) <= {Problem.TAKEN, Problem.ABSENT}


def _plant(folder: Path, paths: list[str]) -> None:
    for path in paths:
        target = folder / path
        if not target.parent.exists():
            target.parent.mkdir(parents=True)
            # The server, who is another user, may delete what we plant.
            target.parent.chmod(0o777)
        target.write_bytes(b"x")
