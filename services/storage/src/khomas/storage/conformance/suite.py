"""What the storage service relies on."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta

import pytest
from zlib_ng import zlib_ng

from khomas.storage.checksums import Algorithm, new_hash
from khomas.storage.conformance.content import (
    MIB,
    NAMES,
    blocks,
    content,
    hidden,
    listed,
    look,
    problems,
    read,
    wanted,
    write,
)
from khomas.storage.conformance.listing import Listing
from khomas.storage.conformance.reading import Reading
from khomas.storage.landing import INCOMING, Landings, SourceDiffers, SourceFailed, Wanted, digest, read_back, tidy
from khomas.storage.protocols.interface import Digest, Entry, Kind, Problem, ProtocolFault, StorageProtocol


class ProtocolConformance(Listing, Reading):
    """Every protocol that takes files. What a server cannot tell is set by the subclass, and so is in the open."""

    full_problem = Problem.FULL
    forbidden_problem = Problem.REFUSED
    # Parts of files that did not fit, which the server leaves where only tidying finds them.
    leaves_parts = False

    async def test_space_is_told_or_not(self, protocol: StorageProtocol) -> None:
        room = await protocol.space()
        assert room.free_bytes is None or room.free_bytes >= 0
        assert room.total_bytes is None or room.free_bytes is None or room.total_bytes >= room.free_bytes

    @pytest.mark.parametrize("name", [*NAMES, "deep/er/and deeper/still"])
    async def test_file_comes_back_under_its_name(self, protocol: StorageProtocol, name: str) -> None:
        if name in self.refused:
            with pytest.raises(ProtocolFault) as caught:
                await protocol.put(name, blocks(b"x"), 1)
            assert caught.value.problem is Problem.REFUSED
            assert not await listed(protocol, "")
            return
        await write(protocol, name, name.encode())
        assert await read(protocol, name) == name.encode()

    @pytest.mark.parametrize("size", [0, 1, MIB, 9 * MIB + 17])
    async def test_size_and_checksum_are_those_of_the_content(self, protocol: StorageProtocol, size: int) -> None:
        data = content(size)
        await write(protocol, "file", data)
        entry = await look(protocol, "file")
        assert isinstance(entry, Entry)
        assert (entry.path, entry.kind, entry.size_bytes) == ("file", Kind.FILE, size)
        assert await read(protocol, "file") == data
        assert await read_back(protocol, "file") == Digest(Algorithm.ADLER32, wanted(data).adler32, size)

    async def test_time_of_a_file_is_when_it_was_written(self, protocol: StorageProtocol) -> None:
        await write(protocol, "file", b"abc")
        entry = await look(protocol, "file")
        assert isinstance(entry, Entry)
        assert entry.modify_time is None or abs(datetime.now(UTC) - entry.modify_time) < timedelta(minutes=5)

    @pytest.mark.parametrize("algorithm", list(Algorithm))
    async def test_checksum_that_is_told_is_right(self, protocol: StorageProtocol, algorithm: Algorithm) -> None:
        # Its adler32 begins with zeros, which some servers drop.
        data = b"\x01"
        expected = new_hash(algorithm)
        expected.update(memoryview(data))
        await write(protocol, "file", data)
        (told,) = await protocol.checksum(["file"], algorithm)
        if isinstance(told, Digest):
            assert algorithm in protocol.abilities.checksums
            assert (told.algorithm, told.value) == (algorithm, expected.hexdigest())
            assert told.size_bytes in (None, 1)
        else:
            assert told.problem is Problem.UNSUPPORTED, told.message

    async def test_checksums_are_per_path_in_order(self, protocol: StorageProtocol) -> None:
        files = {f"file{number}": b"x" * number for number in range(20)}
        await asyncio.gather(*(write(protocol, path, data) for path, data in files.items()))
        for algorithm in protocol.abilities.checksums:
            told = await protocol.checksum(["nothing", *files], algorithm)
            if Problem.UNSUPPORTED in problems(told):
                continue
            assert problems(told)[0] is Problem.ABSENT
            expected = [new_hash(algorithm) for _ in files]
            for one, data in zip(expected, files.values(), strict=True):
                one.update(memoryview(data))
            values = [one.value for one in told if isinstance(one, Digest)]
            assert values == [one.hexdigest() for one in expected]

    # ------------------------------------------------------------------------------------------- new files

    async def test_file_is_invisible_until_published(self, protocol: StorageProtocol) -> None:
        async with await Landings().begin(protocol) as landing:
            await landing.take(blocks(b"abc"), wanted(b"abc"))
            before = await look(protocol, "file")
            await landing.publish("file")
        assert problems([before]) == [Problem.ABSENT]
        assert await read(protocol, "file") == b"abc"
        assert not await hidden(protocol)

    async def test_what_is_not_published_leaves_nothing(self, protocol: StorageProtocol) -> None:
        async with await Landings().begin(protocol) as landing:
            await landing.take(blocks(b"abc"), wanted(b"abc"))
        assert not await hidden(protocol)

    async def test_interrupted_put_leaves_nothing(self, protocol: StorageProtocol) -> None:
        async def broken() -> AsyncGenerator[memoryview, None]:
            async for block in blocks(content(4 * MIB)):
                yield block
            raise ProtocolFault(Problem.UNREACHABLE, "the source is gone")

        with pytest.raises(SourceFailed, match="the source is gone"):
            async with await Landings().begin(protocol) as landing:
                await landing.take(broken(), Wanted(8 * MIB, ""))
        assert not await hidden(protocol)
        await write(protocol, "file", b"afterwards")
        assert await read(protocol, "file") == b"afterwards"

    async def test_cancelled_put_leaves_nothing(self, protocol: StorageProtocol) -> None:
        begun = asyncio.Event()

        async def endless() -> AsyncGenerator[memoryview, None]:
            yield memoryview(content(MIB))
            begun.set()
            await asyncio.Event().wait()

        async def put() -> None:
            async with await Landings().begin(protocol) as landing:
                await landing.take(endless(), Wanted(8 * MIB, ""))

        putting = asyncio.create_task(put())
        await asyncio.wait_for(begun.wait(), 30)
        putting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await putting
        assert not await hidden(protocol)

    @pytest.mark.parametrize("announced", [Wanted(6, ""), Wanted(9, ""), Wanted(7, "00000001")])
    async def test_source_that_is_not_as_announced_leaves_nothing(
        self, protocol: StorageProtocol, announced: Wanted
    ) -> None:
        with pytest.raises(SourceDiffers, match="7 bytes with adler32"):
            async with await Landings().begin(protocol) as landing:
                await landing.take(blocks(b"content"), announced)
        assert not await hidden(protocol)

    async def test_wrong_bytes_at_the_far_end_are_seen(self, protocol: StorageProtocol) -> None:
        async with await Landings().begin(protocol) as landing:
            sums = await landing.take(blocks(b"right"), wanted(b"right"))
            (gone,) = await protocol.delete([landing.hidden])
            await protocol.put(landing.hidden, blocks(b"wrong"), 5)
            with pytest.raises(ProtocolFault) as caught:
                await landing.verify(5, sums)
        assert (gone, caught.value.problem) == (None, Problem.CHECKSUM)

    async def test_truncated_bytes_at_the_far_end_are_seen(self, protocol: StorageProtocol) -> None:
        async with await Landings().begin(protocol) as landing:
            await landing.take(blocks(b"right"), wanted(b"right"))
            with pytest.raises(ProtocolFault) as caught:
                await landing.verify(6, dict.fromkeys(Algorithm, "0"))
        assert caught.value.problem is Problem.CHECKSUM

    async def test_many_files_come_in_at_once(self, protocol: StorageProtocol) -> None:
        files = {f"many/{number}": content(number * 1000) for number in range(100)}
        await asyncio.gather(*(write(protocol, path, data) for path, data in files.items()))
        assert await asyncio.gather(*(read(protocol, path) for path in files)) == list(files.values())

    async def test_tidying_removes_only_what_is_old(self, protocol: StorageProtocol) -> None:
        (fault,) = await protocol.make_folders([INCOMING])
        assert fault is None
        async with await Landings().begin(protocol) as landing:
            await landing.take(blocks(b"abc"), wanted(b"abc"))
            await tidy(protocol, datetime.now(UTC) - timedelta(days=1))
            kept = await hidden(protocol)
            await tidy(protocol, datetime.now(UTC) + timedelta(days=1))
            assert (kept, await hidden(protocol)) == ([landing.hidden], [])

    async def test_tidying_what_was_never_used_is_no_fault(self, protocol: StorageProtocol) -> None:
        await tidy(protocol, datetime.now(UTC))

    # --------------------------------------------------------------------------------------------- renaming

    async def test_publishing_overwrites_nothing(self, protocol: StorageProtocol) -> None:
        await write(protocol, "file", b"first")
        with pytest.raises(ProtocolFault) as caught:
            await write(protocol, "file", b"second")
        assert caught.value.problem is Problem.TAKEN
        assert await read(protocol, "file") == b"first"

    async def test_renaming_overwrites_nothing(self, protocol: StorageProtocol) -> None:
        await write(protocol, "a", b"aa")
        await write(protocol, "b", b"bb")
        assert problems(await protocol.rename([("a", "b"), ("nothing", "d")])) == [Problem.TAKEN, Problem.ABSENT]
        assert await protocol.rename([("b", "c")]) == [None]
        assert (await read(protocol, "a"), await read(protocol, "c")) == (b"aa", b"bb")
        assert problems(await protocol.stat(["b"])) == [Problem.ABSENT]

    async def test_two_who_want_one_name_are_told_apart(self, protocol: StorageProtocol) -> None:
        names = [f"from{number}" for number in range(8)]
        for name in names:
            await write(protocol, name, name.encode())
        done = await asyncio.gather(*(protocol.rename([(name, "file")]) for name in names))
        won = [name for name, (fault,) in zip(names, done, strict=True) if fault is None]
        assert (await read(protocol, "file")).decode() in won
        if protocol.abilities.exclusive_rename:
            assert len(won) == 1
            assert {fault.problem for (fault,) in done if fault} == {Problem.TAKEN}

    async def test_file_where_a_folder_is_needed_is_left_alone(self, protocol: StorageProtocol) -> None:
        if not protocol.abilities.folders:
            # There a file and names below it can be side by side.
            return
        await write(protocol, "file", b"first")
        with pytest.raises(ProtocolFault) as caught:
            await write(protocol, "file/below", b"second")
        assert caught.value.problem in (Problem.TAKEN, Problem.ABSENT)
        assert await read(protocol, "file") == b"first"
        assert not await hidden(protocol)

    # --------------------------------------------------------------------------------------------- deleting

    async def test_deleting_twice_is_no_fault(self, protocol: StorageProtocol) -> None:
        await write(protocol, "a/b", b"x")
        assert await protocol.delete(["a/b", "never/was"]) == [None, None]
        assert await protocol.delete(["a/b"]) == [None]
        assert problems(await protocol.stat(["a/b"])) == [Problem.ABSENT]

    async def test_deleting_touches_nothing_else(self, protocol: StorageProtocol) -> None:
        for path in ("a/b", "a/bc", "a/c", "a b"):
            await write(protocol, path, path.encode())
        await protocol.delete(["a/b"])
        assert [await read(protocol, path) for path in ("a/bc", "a/c", "a b")] == [b"a/bc", b"a/c", b"a b"]

    async def test_folder_that_holds_something_stays(self, protocol: StorageProtocol) -> None:
        await write(protocol, "folder/file", b"x")
        (fault,) = await protocol.delete(["folder"])
        assert await read(protocol, "folder/file") == b"x"
        assert fault is not None or not protocol.abilities.folders

    async def test_thousand_are_deleted_in_one_call(self, protocol: StorageProtocol) -> None:
        paths = await self.planted(protocol, "thousand", 1000)
        assert problems(await protocol.stat(paths)) == [None] * 1000
        assert await protocol.delete(paths) == [None] * 1000
        assert problems(await protocol.stat(paths)) == [Problem.ABSENT] * 1000

    # --------------------------------------------------------------------------- full, forbidden, elsewhere

    async def test_no_space_is_told_and_leaves_nothing(self, full: StorageProtocol) -> None:
        with pytest.raises(ProtocolFault) as caught:
            await write(full, "file", content(32 * MIB))
        assert caught.value.problem is self.full_problem, caught.value.message
        assert problems(await full.stat(["file"])) == [Problem.ABSENT]
        if self.leaves_parts:
            await tidy(full, datetime.now(UTC) + timedelta(days=1))
        assert not await hidden(full)
        await write(full, "small", b"fits")
        assert await read(full, "small") == b"fits"

    async def test_what_is_forbidden_is_refused(self, forbidden: StorageProtocol) -> None:
        assert await read(forbidden, "file") == b"abc"
        with pytest.raises(ProtocolFault) as caught:
            await forbidden.put("new", blocks(b"x"), 1)
        assert caught.value.problem is self.forbidden_problem, caught.value.message
        assert problems(await forbidden.delete(["file"])) == [self.forbidden_problem]
        assert problems(await forbidden.make_folders(["folder"])) in ([self.forbidden_problem], [None])
        assert problems(await forbidden.rename([("file", "other")])) == [self.forbidden_problem]
        assert problems(await forbidden.stat(["file", "new"])) == [None, Problem.ABSENT]

    async def test_local_paths_are_declared(self, protocol: StorageProtocol) -> None:
        await write(protocol, "file", b"abc")
        assert (protocol.local_path("file") is not None) == protocol.abilities.local

    async def test_digest_asks_or_reads(self, protocol: StorageProtocol) -> None:
        await write(protocol, "file", content(3 * MIB))
        found = await digest(protocol, "file", {Algorithm.ADLER32: ""})
        assert (found.size_bytes, found.value) == (3 * MIB, f"{zlib_ng.adler32(content(3 * MIB)):08x}")
