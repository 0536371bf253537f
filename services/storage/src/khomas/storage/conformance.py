"""The suite that every protocol plug-in passes: inherit and give a `protocol` on an empty storage.

class TestMine(ProtocolConformance):
    @pytest.fixture
    def protocol(self) -> StorageProtocol: ...
"""

from datetime import UTC, datetime, timedelta
from zlib import adler32

import pytest

from khomas.storage.checksums import Sums
from khomas.storage.protocols.interface import Entry, Problem, ProtocolFault, StorageProtocol

BLOCK = bytes(range(256)) * 4096
NAMES = ["plain", "with blank", "Größe-µ", "100%41", "q?a=1&b#c", "deep/er/and/deeper", "-dash", "dot.", ".hidden"]


def write(protocol: StorageProtocol, path: str, content: bytes) -> None:
    """Bring a file in."""
    sink = protocol.create(len(content))
    try:
        for start in range(0, len(content), len(BLOCK)):
            sink.write(memoryview(content)[start : start + len(BLOCK)])
        sink.publish(path)
    finally:
        sink.close()


def read(protocol: StorageProtocol, path: str) -> bytes:
    """Get a file back."""
    source, buffer, content = protocol.open(path), memoryview(bytearray(100_000)), b""
    try:
        while count := source.readinto(buffer):
            content += buffer[:count]
    finally:
        source.close()
    return content


class ProtocolConformance:
    """What the storage service relies on."""

    async def test_probe_tells_room_or_nothing(self, protocol: StorageProtocol) -> None:
        room = await protocol.probe()
        assert room.free_bytes is None or room.free_bytes >= 0

    @pytest.mark.parametrize("name", NAMES)
    async def test_file_comes_back_under_its_name(self, protocol: StorageProtocol, name: str) -> None:
        write(protocol, name, name.encode())
        assert read(protocol, name) == name.encode()

    @pytest.mark.parametrize("size", [0, 1, len(BLOCK), 5 * len(BLOCK) + 17])
    async def test_size_and_checksum_are_those_of_the_content(self, protocol: StorageProtocol, size: int) -> None:
        content = (BLOCK * (size // len(BLOCK) + 1))[:size]
        write(protocol, "file", content)
        (entry,) = await protocol.stat(["file"])
        (sums,) = await protocol.checksum(["file"])
        assert isinstance(entry, Entry)
        assert entry.size_bytes == size
        assert isinstance(sums, Sums)
        assert (sums.size_bytes, sums.adler32) == (size, f"{adler32(content):08x}")

    async def test_sink_knows_what_has_arrived(self, protocol: StorageProtocol) -> None:
        sink = protocol.create(len(BLOCK))
        sink.write(memoryview(BLOCK))
        assert sink.adler32() == f"{adler32(BLOCK):08x}"
        sink.close()

    async def test_file_is_invisible_until_published(self, protocol: StorageProtocol) -> None:
        sink = protocol.create(3)
        sink.write(memoryview(b"abc"))
        (before,) = await protocol.stat(["file"])
        sink.publish("file")
        sink.close()
        (after,) = await protocol.stat(["file"])
        assert isinstance(before, ProtocolFault)
        assert before.problem is Problem.ABSENT
        assert isinstance(after, Entry)

    async def test_closed_sink_leaves_nothing(self, protocol: StorageProtocol) -> None:
        sink = protocol.create(3)
        sink.write(memoryview(b"abc"))
        sink.close()
        (found,) = await protocol.stat(["file"])
        assert isinstance(found, ProtocolFault)

    async def test_publishing_overwrites_nothing(self, protocol: StorageProtocol) -> None:
        write(protocol, "file", b"first")
        with pytest.raises(ProtocolFault) as caught:
            write(protocol, "file", b"second")
        assert caught.value.problem is Problem.TAKEN
        assert read(protocol, "file") == b"first"

    async def test_file_where_a_folder_is_needed_is_left_alone(self, protocol: StorageProtocol) -> None:
        write(protocol, "file", b"first")
        with pytest.raises(ProtocolFault) as caught:
            write(protocol, "file/below", b"second")
        assert caught.value.problem in (Problem.TAKEN, Problem.ABSENT)
        assert read(protocol, "file") == b"first"

    async def test_reading_what_is_not_there_is_absent(self, protocol: StorageProtocol) -> None:
        with pytest.raises(ProtocolFault) as caught:
            protocol.open("nothing")
        assert caught.value.problem is Problem.ABSENT

    async def test_answers_are_per_path_in_order(self, protocol: StorageProtocol) -> None:
        write(protocol, "b", b"bb")
        found = await protocol.stat(["a", "b", "c"])
        assert [isinstance(one, Entry) for one in found] == [False, True, False]
        sums = await protocol.checksum(["b", "a"])
        assert [isinstance(one, Sums) for one in sums] == [True, False]

    async def test_deleting_twice_is_no_fault(self, protocol: StorageProtocol) -> None:
        write(protocol, "a/b", b"x")
        assert await protocol.delete(["a/b", "never/was"]) == [None, None]
        assert await protocol.delete(["a/b"]) == [None]
        (found,) = await protocol.stat(["a/b"])
        assert isinstance(found, ProtocolFault)

    async def test_deleting_touches_nothing_else(self, protocol: StorageProtocol) -> None:
        write(protocol, "a/b", b"x")
        write(protocol, "a/c", b"y")
        await protocol.delete(["a/b"])
        assert read(protocol, "a/c") == b"y"

    async def test_tidying_removes_only_what_is_old(self, protocol: StorageProtocol) -> None:
        sink = protocol.create(3)
        sink.write(memoryview(b"abc"))
        await protocol.tidy(datetime.now(UTC) - timedelta(days=1))
        sink.publish("file")
        sink.close()
        assert read(protocol, "file") == b"abc"

    async def test_local_paths_are_declared(self, protocol: StorageProtocol) -> None:
        write(protocol, "file", b"abc")
        assert (protocol.local_path("file") is not None) == protocol.abilities.local
