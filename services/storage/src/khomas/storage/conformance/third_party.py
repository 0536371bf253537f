"""Copies from storage to storage that do not pass through us: `protocol` and `other` are two of them."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from khomas.api.storage.v1 import transfer_pb2 as pb
from khomas.storage.conformance.content import MIB, content, hidden, problems, read, wanted, write
from khomas.storage.landing import INCOMING, Landings, Wanted
from khomas.storage.protocols.interface import Problem, ProtocolFault, StorageProtocol
from khomas.storage.transfers.copying import Copy, CopyFailed, published


async def followed(marks: AsyncGenerator[int, None]) -> list[int]:
    """Follow a copy to its end."""
    async with aclosing(marks):
        return [mark async for mark in marks]


class ThirdPartyConformance:
    """Both directions, and what goes wrong."""

    @pytest.mark.parametrize("size", [0, 1, 50 * MIB])
    async def test_copy_does_not_pass_through_us(
        self, protocol: StorageProtocol, other: StorageProtocol, size: int
    ) -> None:
        data = content(size)
        await write(protocol, "from", data)
        copy = Copy(wanted(data))
        async with await Landings().begin(other) as landing:
            await copy.run(protocol, "from", landing)
            assert await published(landing, "some folder/to")
        assert await read(other, "some folder/to") == data
        assert (copy.bytes, copy.streamed_bytes) == (size, 0)

    async def test_storage_fetches(self, protocol: StorageProtocol, other: StorageProtocol) -> None:
        await write(protocol, "from", content(3 * MIB))
        assert protocol.third_party is not None
        assert other.third_party is not None
        assert await other.make_folders(["ä b"]) == [None]
        remote = await protocol.third_party.remote("from", write=False)
        seen = await followed(other.third_party.pull(remote, "ä b/to 100%"))
        assert seen == sorted(seen)
        assert await read(other, "ä b/to 100%") == content(3 * MIB)

    async def test_storage_sends(self, protocol: StorageProtocol, other: StorageProtocol) -> None:
        await write(protocol, "ä b/from 100%", content(3 * MIB))
        assert protocol.third_party is not None
        assert other.third_party is not None
        remote = await other.third_party.remote("to", write=True)
        await followed(protocol.third_party.push("ä b/from 100%", remote))
        assert await read(other, "to") == content(3 * MIB)

    async def test_missing_source_is_the_fault_of_the_source(
        self, protocol: StorageProtocol, other: StorageProtocol
    ) -> None:
        with pytest.raises(CopyFailed) as caught:
            async with await Landings().begin(other) as landing:
                await Copy(Wanted(3, "00000001")).run(protocol, "nothing", landing)
        assert caught.value.reason == pb.TRANSFER_REASON_SOURCE, caught.value.message
        assert not await hidden(other)

    async def test_wrong_source_is_told_and_leaves_nothing(
        self, protocol: StorageProtocol, other: StorageProtocol
    ) -> None:
        await write(protocol, "from", b"wrong")
        with pytest.raises(CopyFailed) as caught:
            async with await Landings().begin(other) as landing:
                await Copy(wanted(b"right")).run(protocol, "from", landing)
        assert caught.value.reason == pb.TRANSFER_REASON_SOURCE_CHECKSUM, caught.value.message
        assert not await hidden(other)

    async def test_source_that_nobody_hears_is_told(self, protocol: StorageProtocol, other: StorageProtocol) -> None:
        await write(protocol, "from", b"abc")
        assert protocol.third_party is not None
        assert other.third_party is not None
        assert await other.make_folders([INCOMING]) == [None]
        remote = await protocol.third_party.remote("vanished", write=False)
        with pytest.raises(ProtocolFault) as caught:
            await followed(other.third_party.pull(remote, f"{INCOMING}/to"))
        assert caught.value.other_end
        await other.delete([f"{INCOMING}/to"])
        assert problems(await other.stat([f"{INCOMING}/to"])) == [Problem.ABSENT]
