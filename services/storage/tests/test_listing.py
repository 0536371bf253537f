"""All files of a storage are listed, or none: nothing is concluded from a part."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path

import pytest

from khomas.storage.protocols.interface import Entry, Problem, ProtocolFault
from khomas.storage.protocols.posix import PosixProtocol
from khomas.storage.reconciling.listing import files_of


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "disk"
    for path in ("a/b/c/deep", "a/file", "top", ".khomas/incoming/half", "a/.khomas/visible"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"bytes")
    return folder


@pytest.fixture
async def disk(root: Path) -> AsyncIterator[PosixProtocol]:
    protocol = PosixProtocol(root, follow_out=True)
    yield protocol
    await protocol.close()


async def listed(protocol: PosixProtocol, *, follow: bool = False) -> list[str]:
    return sorted([one.path async for page in files_of(protocol, follow=follow) for one in page])


ALL = ["a/.khomas/visible", "a/b/c/deep", "a/file", "top"]


async def test_everything_outside_the_private_folder_is_listed(disk: PosixProtocol) -> None:
    assert await listed(disk) == ALL


async def test_wide_trees_are_listed_whole(disk: PosixProtocol, root: Path) -> None:
    for folder in range(300):
        (root / "wide" / f"{folder}").mkdir(parents=True)
        for file in range(3):
            (root / "wide" / f"{folder}" / f"{file}").touch()

    assert len(await listed(disk)) == len(ALL) + 900


async def test_links_to_folders_are_followed_only_when_told_to_and_never_round_and_round(
    disk: PosixProtocol, root: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "theirs").write_bytes(b"1")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "same").symlink_to(root / "a")
    (root / "away").symlink_to(outside)

    assert await listed(disk) == ALL
    assert await listed(disk, follow=True) == [*ALL[:3], "away/theirs", "top"]


class Refusing(PosixProtocol):
    """Lets nobody look into one folder."""

    problem = Problem.REFUSED

    async def entries(self, folder: str) -> AsyncGenerator[Sequence[Entry], None]:
        if folder == "a/b":
            raise ProtocolFault(self.problem, "not for you")
        async with aclosing(super().entries(folder)) as pages:
            async for page in pages:
                yield page


class Vanishing(Refusing):
    """Has lost that folder since its parent was listed."""

    problem = Problem.ABSENT


async def test_folder_that_cannot_be_listed_ends_the_listing(root: Path) -> None:
    with pytest.raises(ProtocolFault, match="a/b cannot be listed: not for you"):
        await listed(Refusing(root))


async def test_folder_that_is_gone_meanwhile_is_no_fault(root: Path) -> None:
    assert await listed(Vanishing(root)) == [path for path in ALL if path != "a/b/c/deep"]


async def test_storage_that_is_not_there_is_not_empty(tmp_path: Path) -> None:
    with pytest.raises(ProtocolFault):
        await listed(PosixProtocol(tmp_path / "nowhere"))


async def test_listing_that_nobody_wants_any_more_ends(disk: PosixProtocol, root: Path) -> None:
    for number in range(50):
        (root / f"folder {number}").mkdir()
        (root / f"folder {number}" / "file").touch()

    pages = files_of(disk, follow=False)
    await anext(pages)
    await pages.aclose()

    assert len(await listed(disk)) == len(ALL) + 50
