"""Files and parts of files."""

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import pytest

from khomas.storage.conformance.content import GIB, MIB, content, look, problems, read, write
from khomas.storage.protocols.interface import Entry, Problem, ProtocolFault, StorageProtocol

RANGES = [(0, None), (0, 0), (0, 1), (3, 4), (9, 1), (5, None), (5, 100), (9, 2), (10, None), (10, 1), (11, 1), (99, 9)]


class Reading:
    """Reading whole files and ranges."""

    # Of a file with holes; more than 32 bits can count.
    sparse_bytes = 5 * GIB
    planting: Path | None

    async def sparse(self, protocol: StorageProtocol, path: str) -> None:
        """Make a file of zeros with an end of its own."""
        if self.planting is not None:
            with (self.planting / path).open("wb") as file:
                os.pwrite(file.fileno(), b"end", self.sparse_bytes - 3)
            return
        await protocol.put(path, _zeros(self.sparse_bytes - 3), self.sparse_bytes)

    @pytest.mark.parametrize(("start", "size"), RANGES)
    async def test_range_is_that_part(self, protocol: StorageProtocol, start: int, size: int | None) -> None:
        await write(protocol, "file", b"0123456789")
        end = None if size is None else start + size
        assert await read(protocol, "file", start, size) == b"0123456789"[start:end]

    @pytest.mark.parametrize(("start", "size"), [(0, None), (0, 1), (1, 1), (1, None)])
    async def test_no_part_of_an_empty_file_is_anything(
        self, protocol: StorageProtocol, start: int, size: int | None
    ) -> None:
        await write(protocol, "empty", b"")
        assert await read(protocol, "empty", start, size) == b""

    async def test_large_range_is_that_part(self, protocol: StorageProtocol) -> None:
        data = content(20 * MIB)
        await write(protocol, "file", data)
        assert await read(protocol, "file", 3 * MIB + 1, 11 * MIB) == data[3 * MIB + 1 : 14 * MIB + 1]

    async def test_ranges_are_read_at_once(self, protocol: StorageProtocol) -> None:
        data = content(8 * MIB)
        await write(protocol, "file", data)
        parts = await asyncio.gather(*(read(protocol, "file", start * MIB, MIB) for start in range(8)))
        assert b"".join(parts) == data

    async def test_file_beyond_32_bits(self, protocol: StorageProtocol) -> None:
        await self.sparse(protocol, "sparse")
        entry = await look(protocol, "sparse")
        assert isinstance(entry, Entry)
        assert entry.size_bytes == self.sparse_bytes
        assert await read(protocol, "sparse", self.sparse_bytes - 5, 100) == b"\0\0end"
        assert await read(protocol, "sparse", self.sparse_bytes // 2, 10) == bytes(10)
        assert await read(protocol, "sparse", self.sparse_bytes, 10) == b""

    async def test_reading_that_is_left_early_does_no_harm(self, protocol: StorageProtocol) -> None:
        data = content(16 * MIB)
        await write(protocol, "file", data)
        for _ in range(20):
            async with aclosing(protocol.get("file")) as stream:
                first = bytes(await anext(stream))
            assert data.startswith(first)
        assert await read(protocol, "file") == data

    async def test_what_is_not_there_is_absent(self, protocol: StorageProtocol) -> None:
        for path in ("nothing", "no folder/nothing"):
            with pytest.raises(ProtocolFault) as caught:
                await read(protocol, path)
            assert caught.value.problem is Problem.ABSENT
        assert problems(await protocol.stat(["nothing", "no folder/nothing"])) == [Problem.ABSENT] * 2

    async def test_answers_are_per_path_in_order(self, protocol: StorageProtocol) -> None:
        await write(protocol, "b", b"bb")
        await write(protocol, "d", b"dddd")
        found = await protocol.stat(["a", "b", "c", "d", "b"])
        sizes = [one.size_bytes if isinstance(one, Entry) else one.problem for one in found]
        assert sizes == [Problem.ABSENT, 2, Problem.ABSENT, 4, 2]

    async def test_asking_about_nothing_is_no_fault(self, protocol: StorageProtocol) -> None:
        assert await protocol.stat([]) == await protocol.delete([]) == await protocol.rename([]) == []


async def _zeros(size: int) -> AsyncGenerator[memoryview, None]:
    block = memoryview(bytes(4 * MIB))
    while size:
        yield block[:size]
        size -= min(size, len(block))
    yield memoryview(b"end")
