"""What a storage says about deletions is checked, and failures are told apart."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from khomas.api.storage.v1 import storage_element_pb2
from khomas.api.storage.v1 import transfer_pb2 as pb
from khomas.storage.deletions.erasing import Left, erased, pause
from khomas.storage.elements.access_points import AccessPoint
from khomas.storage.elements.elements import Element, Protocols
from khomas.storage.protocols.interface import Plugin, Problem, ProtocolFault, StorageProtocol
from khomas.storage.protocols.posix import PosixProtocol


class Lying(PosixProtocol):
    """Says that it deletes, and does not."""

    async def delete(self, paths: Sequence[str]) -> list[ProtocolFault | None]:
        return [None] * len(paths)


class Doubtful(PosixProtocol):
    """Deletes, and says that it could not."""

    async def delete(self, paths: Sequence[str]) -> list[ProtocolFault | None]:
        await super().delete(paths)
        return [ProtocolFault(Problem.PASSING, "connection lost")] * len(paths)


def element(root: Path, protocol: str) -> Element:
    now = datetime.now(UTC)
    values = dict.fromkeys(Element.__dataclass_fields__) | {
        "id": "disk",
        "access_points": (AccessPoint(protocol, str(root)),),
        "media": storage_element_pb2.StorageElement.MEDIA_DISK,
        "read_only": False,
        "create_time": now,
    }
    return Element(**values)  # type: ignore[arg-type]  # what nobody asks for here is empty


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "disk"
    folder.mkdir()
    (folder / "file").write_bytes(b"bytes")
    return folder


async def told(root: Path, kind: type[PosixProtocol], *paths: str) -> list[Left | None]:
    opened: StorageProtocol = kind(root)
    protocols = Protocols({"kind": Plugin(open=lambda _: opened)}, {})
    try:
        return await erased(protocols, element(root, "kind"), paths)
    finally:
        await protocols.close()


async def test_file_that_is_still_there_is_not_gone_whatever_the_storage_says(root: Path) -> None:
    (left,) = await told(root, Lying, "file")

    assert left is not None
    assert left.reason == pb.DELETION_REASON_STILL_THERE


async def test_file_that_is_gone_is_gone_though_the_answer_was_lost(root: Path) -> None:
    assert await told(root, Doubtful, "file") == [None]


async def test_many_are_told_apart(root: Path) -> None:
    (root / "folder").mkdir()
    (root / "folder" / "inside").write_bytes(b"")

    gone, absent, folder = await told(root, PosixProtocol, "file", "never was", "folder")

    assert (gone, absent) == (None, None)
    assert folder is not None
    assert (root / "folder" / "inside").exists()


async def test_storage_that_is_away_keeps_everything(root: Path) -> None:
    lefts = await told(root.with_name("away"), PosixProtocol, *(f"file {number}" for number in range(1000)))

    assert {left.reason for left in lefts if left} == {pb.DELETION_REASON_UNREACHABLE}
    assert len(lefts) == 1000


def test_pause_grows_and_is_long_where_somebody_has_to_do_something() -> None:
    first = timedelta(seconds=10)

    assert pause(pb.DELETION_REASON_TRANSIENT, 0, first) == timedelta(seconds=10)
    assert pause(pb.DELETION_REASON_TRANSIENT, 2, first) == timedelta(seconds=40)
    assert pause(pb.DELETION_REASON_REFUSED, 0, first) == timedelta(seconds=100)
    assert pause(pb.DELETION_REASON_CREDENTIAL, 30, first) == timedelta(hours=1)
