"""Every protocol that only reads: the files are planted where its server has them."""

from pathlib import Path

import pytest

from khomas.storage.checksums import Algorithm, new_hash
from khomas.storage.conformance.content import GIB, MIB, NAMES, blocks, content, listed, look, problems, read
from khomas.storage.conformance.reading import RANGES
from khomas.storage.protocols.interface import Digest, Entry, Kind, Problem, ProtocolFault, StorageProtocol

_REFUSED = {Problem.UNSUPPORTED, Problem.REFUSED}


class ReadingConformance:
    """Fixtures: `protocol`, and `disk`, the folder of this machine where its files lie."""

    many = 10_000
    sparse_bytes = 5 * GIB
    # Names that cannot be used there.
    refused: frozenset[str] = frozenset()
    # Names that are read and not listed.
    unlisted: frozenset[str] = frozenset()

    def test_abilities_say_so(self, protocol: StorageProtocol) -> None:
        assert not protocol.abilities.writes

    async def test_it_answers(self, protocol: StorageProtocol, disk: Path) -> None:
        assert (await protocol.space()).free_bytes == 0

    async def test_files_come_under_their_names(self, protocol: StorageProtocol, disk: Path) -> None:
        for name in NAMES:
            (disk / name).write_bytes(name.encode())
        for name in set(NAMES) - self.refused:
            assert await read(protocol, name) == name.encode()
        found = {entry.path: (entry.kind, entry.size_bytes) for entry in await listed(protocol, "")}
        expected = {name: (Kind.FILE, len(name.encode())) for name in set(NAMES) - self.unlisted - self.refused}
        assert {name: found.get(name) for name in expected} == expected

    async def test_listing_tells_kinds_and_only_what_is_directly_there(
        self, protocol: StorageProtocol, disk: Path
    ) -> None:
        (disk / "ä b/folder").mkdir(parents=True)
        (disk / "ä b/file").write_bytes(b"abc")
        (disk / "ä b/folder/below").write_bytes(b"d")
        entries = {one.path: (one.kind, one.size_bytes) for one in await listed(protocol, "ä b")}
        assert entries == {"ä b/file": (Kind.FILE, 3), "ä b/folder": (Kind.FOLDER, 0)}
        assert await listed(protocol, "ä b/folder") != []
        with pytest.raises(ProtocolFault) as caught:
            await listed(protocol, "nothing")
        assert caught.value.problem is Problem.ABSENT

    async def test_long_listing_is_complete(self, protocol: StorageProtocol, disk: Path) -> None:
        (disk / "crowd").mkdir()
        for number in range(self.many):
            (disk / f"crowd/file {number}").write_bytes(b"x")
        found = [(one.path, one.size_bytes) for one in await listed(protocol, "crowd")]
        assert sorted(found) == sorted((f"crowd/file {number}", 1) for number in range(self.many))

    async def test_ranges_are_those_parts(self, protocol: StorageProtocol, disk: Path) -> None:
        (disk / "file").write_bytes(b"0123456789")
        (disk / "empty").write_bytes(b"")
        for start, size in RANGES:
            end = None if size is None else start + size
            assert await read(protocol, "file", start, size) == b"0123456789"[start:end], (start, size)
            assert await read(protocol, "empty", start, size) == b""

    async def test_large_file_comes_whole(self, protocol: StorageProtocol, disk: Path) -> None:
        data = content(20 * MIB)
        (disk / "file").write_bytes(data)
        assert await read(protocol, "file") == data
        assert await read(protocol, "file", 3 * MIB + 1, 11 * MIB) == data[3 * MIB + 1 : 14 * MIB + 1]

    async def test_file_beyond_32_bits(self, protocol: StorageProtocol, disk: Path) -> None:
        with (disk / "sparse").open("wb") as file:
            file.truncate(self.sparse_bytes - 3)
            file.seek(self.sparse_bytes - 3)
            file.write(b"end")
        entry = await look(protocol, "sparse")
        assert isinstance(entry, Entry)
        assert entry.size_bytes == self.sparse_bytes
        assert await read(protocol, "sparse", self.sparse_bytes - 5, 100) == b"\0\0end"

    async def test_what_is_not_there_is_absent(self, protocol: StorageProtocol, disk: Path) -> None:
        (disk / "folder").mkdir()
        for path in ("nothing", "no folder/nothing"):
            with pytest.raises(ProtocolFault) as caught:
                await read(protocol, path)
            assert caught.value.problem is Problem.ABSENT
        # A folder has no bytes, whatever a server sends for it.
        with pytest.raises(ProtocolFault):
            await read(protocol, "folder")
        found = await protocol.stat(["nothing", "folder", "no folder/nothing"])
        assert problems(found) == [Problem.ABSENT, None, Problem.ABSENT]
        assert [one.kind for one in found if isinstance(one, Entry)] == [Kind.FOLDER]

    async def test_checksum_that_is_told_is_right(self, protocol: StorageProtocol, disk: Path) -> None:
        (disk / "file").write_bytes(b"\x01")
        for algorithm in Algorithm:
            expected = new_hash(algorithm)
            expected.update(memoryview(b"\x01"))
            (told,) = await protocol.checksum(["file"], algorithm)
            if isinstance(told, Digest):
                assert told.value == expected.hexdigest()
            else:
                assert told.problem is Problem.UNSUPPORTED

    async def test_nothing_is_written(self, protocol: StorageProtocol, disk: Path) -> None:
        (disk / "file").write_bytes(b"abc")
        with pytest.raises(ProtocolFault) as caught:
            await protocol.put("new", blocks(b"x"), 1)
        assert caught.value.problem in _REFUSED
        for results in (
            await protocol.delete(["file"]),
            await protocol.make_folders(["folder"]),
            await protocol.rename([("file", "other")]),
        ):
            assert set(problems(results)) <= _REFUSED
        assert _names(disk) == ["file"]


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
