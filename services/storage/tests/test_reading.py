"""Streams go on where a connection broke, on the same storage or on another that has the file."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from khomas.api.storage.v1 import transfer_pb2 as pb
from khomas.storage.protocols.interface import Problem, ProtocolFault, StorageProtocol
from khomas.storage.reading import Reading, Source
from khomas.storage.transfers.attempts import bottleneck

DATA = bytes(range(256)) * 4


@dataclass(slots=True)
class Breaking:
    """A storage whose connections break after so many bytes each."""

    lives: list[int]
    problem: Problem = Problem.PASSING
    starts: list[int] = field(default_factory=list)

    async def get(self, path: str, start: int = 0, size_bytes: int | None = None) -> AsyncGenerator[memoryview, None]:
        self.starts.append(start)
        life = self.lives.pop(0) if self.lives else len(DATA)
        for position in range(start, min(start + life, len(DATA)), 64):
            yield memoryview(DATA)[position : min(position + 64, start + life)]
        if start + life < len(DATA):
            raise ProtocolFault(self.problem, "broke")


def source(name: str, storage: Breaking) -> Source:
    return Source(name, cast(StorageProtocol, cast(Any, storage)), "path")  # only what is read


async def read(reading: Reading) -> bytes:
    return b"".join([bytes(block) async for block in reading.blocks()])


def reading_of(*sources: Source) -> Reading:
    return Reading(sources, pause_seconds=0)


async def test_broken_stream_goes_on_where_it_broke() -> None:
    storage = Breaking([100, 300])
    reading = reading_of(source("a", storage))

    assert await read(reading) == DATA
    assert storage.starts == [0, 100, 400]
    assert len(reading.remarks) == 2


async def test_stream_that_breaks_before_its_first_byte_is_given_up() -> None:
    with pytest.raises(ProtocolFault):
        await read(reading_of(source("a", Breaking([0]))))


async def test_stream_that_gets_no_further_is_given_up() -> None:
    storage = Breaking([100, *[0] * 9])

    with pytest.raises(ProtocolFault):
        await read(reading_of(source("a", storage)))
    assert len(storage.starts) == 4


async def test_other_storage_goes_on_where_the_first_gave_up() -> None:
    first, second = Breaking([128], Problem.ABSENT), Breaking([])
    reading = reading_of(source("a", first), source("b", second))

    assert await read(reading) == DATA
    assert (reading.source.element, second.starts) == ("b", [128])
    assert reading.switched


async def test_other_storage_begins_where_the_first_has_nothing() -> None:
    first, second = Breaking([0], Problem.ABSENT), Breaking([])
    reading = reading_of(source("a", first), source("b", second))

    assert await read(reading) == DATA
    assert not reading.switched


@pytest.mark.parametrize(
    ("waits", "expected"),
    [
        ((60.0, 5.0, 1.0, 1.0, 0.0), pb.BOTTLENECK_QUEUE),
        ((0.0, 5.0, 4.0, 0.5, 0.0), pb.BOTTLENECK_SOURCE),
        ((0.0, 5.0, 0.5, 4.0, 0.0), pb.BOTTLENECK_DESTINATION),
        ((0.0, 5.0, 2.0, 2.0, 0.0), pb.BOTTLENECK_NETWORK),
        ((0.0, 5.0, 0.5, 0.5, 4.0), pb.BOTTLENECK_LIMIT),
        ((0.0, 5.0, 0.0, 0.0, 0.0), pb.BOTTLENECK_NETWORK),
    ],
)
def test_bottleneck_is_what_was_waited_for_most(
    waits: tuple[float, float, float, float, float], expected: pb.Bottleneck.ValueType
) -> None:
    assert bottleneck(*waits) == expected
