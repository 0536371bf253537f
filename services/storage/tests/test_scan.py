"""A tree is walked in path order, and what lies there is told without changing it."""

import gzip
import hashlib
import os
from pathlib import Path
from typing import Any
from uuid import uuid4
from zlib import adler32

import grpc
import pytest

from khomas.api.storage.v1 import storage_element_pb2
from khomas.api.storage.v1 import storage_service_pb2 as pb
from khomas.kit.boundary.status import reason_of
from khomas.storage.testing import Storage


@pytest.fixture
async def tree(storage: Storage, tmp_path: Path, fits_file: bytes) -> Path:
    """Make a read-only StorageElement `tree` with some files."""
    root = tmp_path / "tree"
    files = {
        "data/run_1.fits.gz": gzip.compress(fits_file),
        "data/run_2.fits": fits_file,
        "data-old/x": b"old",
        "data.txt": b"text",
        "z/empty": b"",
        ".khomas/uploads/x/0": b"hidden",
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    element = storage_element_pb2.StorageElement(name="storageElements/tree", read_only=True)
    element.media = storage_element_pb2.StorageElement.MEDIA_DISK
    element.access_points.add(protocol="posix", address=str(root))
    request = pb.CreateStorageElementRequest(storage_element=element, request_id=str(uuid4()))
    await storage.stub.CreateStorageElement(request)
    return root


async def scan(storage: Storage, **fields: Any) -> list[pb.ScannedFile]:
    request = pb.ScanTreeRequest(storage_element="tree", **fields)
    return [file async for answer in storage.stub.ScanTree(request) for file in answer.files]


def paths(files: list[pb.ScannedFile]) -> list[str]:
    return [file.path for file in files]


ALL = ["data-old/x", "data.txt", "data/run_1.fits.gz", "data/run_2.fits", "z/empty"]


async def test_entries_come_in_path_order(storage: Storage, tree: Path) -> None:
    assert paths(await scan(storage)) == ALL == sorted(ALL)


@pytest.mark.parametrize("position", range(len(ALL)))
async def test_scan_goes_on_after_any_path(storage: Storage, tree: Path, position: int) -> None:
    assert paths(await scan(storage, after_path=ALL[position])) == ALL[position + 1 :]


async def test_limit_and_patterns_choose(storage: Storage, tree: Path) -> None:
    assert paths(await scan(storage, limit=2)) == ALL[:2]
    assert paths(await scan(storage, include=["*.fits.gz", "z/*"])) == ["data/run_1.fits.gz", "z/empty"]
    assert paths(await scan(storage, path="data", include=["run_2*"])) == ["data/run_2.fits"]


async def test_checksums_are_those_of_the_bytes_and_the_digest_that_of_the_data(
    storage: Storage, tree: Path, fits_file: bytes
) -> None:
    files = {file.path: file for file in await scan(storage, checksums=True)}

    plain, zipped = files["data/run_2.fits"], files["data/run_1.fits.gz"]
    assert plain.checksums.adler32 == f"{adler32(fits_file):08x}"
    assert plain.checksums.sha256 == hashlib.sha256(fits_file).hexdigest()
    assert plain.checksums.adler32 != zipped.checksums.adler32
    assert plain.checksums.content_digest == zipped.checksums.content_digest != ""
    assert files["data.txt"].checksums.content_digest == ""
    assert plain.size_bytes == len(fits_file)
    assert plain.modify_time.seconds == int((tree / "data/run_2.fits").stat().st_mtime)


async def test_cards_have_the_types_of_the_file(storage: Storage, tree: Path) -> None:
    wanted = ["RA_PNT", "OBJECT", "OBS_ID", "DEADC", "MISSING", "NAXIS"]
    files = {file.path: file for file in await scan(storage, cards=wanted)}

    cards = {(card.hdu, card.card): card.value for card in files["data/run_1.fits.gz"].cards}
    assert cards["EVENTS", "RA_PNT"].number == 83.63
    assert cards["EVENTS", "OBJECT"].text == "Crab's nebula"
    assert cards["EVENTS", "OBS_ID"].integer == 23523
    assert cards["EVENTS", "DEADC"].boolean is True
    assert cards["PRIMARY", "NAXIS"].integer == 0
    assert "MISSING" not in {card for _, card in cards}
    assert not files["data.txt"].cards


async def test_what_cannot_be_read_is_told_and_does_not_stop_the_scan(storage: Storage, tree: Path) -> None:
    (tree / "data/broken.fits").write_bytes(b"SIMPLE  =" + b" " * 100)
    (tree / "data/dangling").symlink_to("nowhere")
    os.mkfifo(tree / "data/pipe")
    (tree / "data/up").symlink_to(tree)
    (tree / os.fsdecode(b"z/latin-\xe9")).write_bytes(b"")

    errors = {file.path: file.error for file in await scan(storage, cards=["OBJECT"])}

    assert [path for path, error in errors.items() if not error] == ALL
    assert errors["data/broken.fits"].startswith("is no FITS file")
    assert errors["data/pipe"] == "not a regular file"
    assert errors["data/up"] == "a link to a folder above it"
    assert {"data/dangling", "z/latin-\ufffd"} <= errors.keys()


def times(tree: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in tree.rglob("*")}


async def test_changes_nothing(storage: Storage, tree: Path) -> None:
    before = times(tree)

    await scan(storage, checksums=True, cards=["OBJECT"])

    assert times(tree) == before


@pytest.mark.parametrize(("path", "reason"), [("../state", "PATH_REFUSED"), ("nothing", "PATH_NOT_FOUND")])
async def test_wrong_top_is_refused(storage: Storage, tree: Path, path: str, reason: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await scan(storage, path=path)

    assert reason_of(caught.value) == reason
