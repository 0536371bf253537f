"""The client against real services: token discovery, bytes, errors."""

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from khomas.api.storage.v1.storage_element_pb2 import StorageElement
from khomas.catalog.app import service as catalog
from khomas.catalog.testing import create, new_file
from khomas.client import AsyncClient, KhomasError, downloads
from khomas.client.errors import NOT_FOUND, UNREACHABLE, UsageError
from khomas.client.files import Pair
from khomas.client.token import find_token
from khomas.kit.testing import Served, serve
from khomas.storage.app import service as storage


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serve(catalog, storage, state=tmp_path / "state") as running:
        yield running


@pytest.fixture
async def client(served: Served) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(served.endpoint, served.token()) as made:
        yield made


def test_the_token_is_looked_for_in_the_order_of_wlcg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("BEARER_TOKEN", raising=False)
    monkeypatch.delenv("BEARER_TOKEN_FILE", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / f"bt_u{os.geteuid()}").write_text(" third \n")
    assert find_token() == "third"
    (tmp_path / "token").write_text("\tsecond\r\n")
    monkeypatch.setenv("BEARER_TOKEN_FILE", str(tmp_path / "token"))
    assert find_token() == "second"
    monkeypatch.setenv("BEARER_TOKEN", "first\n")
    assert find_token() == "first"


@pytest.mark.parametrize("size", [0, 1, 5_000_000])
async def test_bytes_come_back_as_they_went(client: AsyncClient, tmp_path: Path, size: int) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(size))
    counted: list[int] = []
    await client.files.put([Pair(source, "/hess/a b é")], progress=counted.append)
    await client.files.get([Pair(tmp_path / "back", "/hess/a b é")])
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    assert sum(counted) == size


async def test_bytes_go_over_http_when_the_storage_is_elsewhere(
    client: AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(3_000_000))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    await client.files.put([Pair(source, "/hess/a")])
    part = tmp_path / ".back.khomas-part"
    part.write_bytes(source.read_bytes()[:1_000_000])
    await client.files.get([Pair(tmp_path / "back", "/hess/a")])
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    assert not part.exists()


async def test_a_damaged_copy_leaves_no_file(client: AsyncClient, served: Served, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"content")
    await client.files.put([Pair(source, "/hess/a")])
    (served.state / "storage/local/hess/a").write_bytes(b"CONTENT")
    with pytest.raises(KhomasError, match="arrived with adler32"):
        await client.files.get([Pair(tmp_path / "back", "/hess/a")])
    assert not (tmp_path / "back").exists()


def parts(folder: Path) -> list[Path]:
    return list(folder.glob(".*part*"))


@pytest.mark.parametrize("local", [True, False])
async def test_a_damaged_copy_replaces_nothing(
    client: AsyncClient, served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local: bool
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"content")
    await client.files.put([Pair(source, "/hess/a")])
    (served.state / "storage/local/hess/a").write_bytes(b"CONTENT")
    if not local:
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(KhomasError, match="arrived with adler32"):
        await client.files.get([Pair(source, "/hess/a")], overwrite=True)
    assert source.read_bytes() == b"content"
    assert parts(tmp_path) == []


async def test_a_file_that_fails_does_not_keep_others_from_coming(
    client: AsyncClient, served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "_PAUSES", (0.01,))
    names = [f"/hess/{number}" for number in range(20)]
    (tmp_path / "source").write_bytes(b"content")
    await client.files.put([Pair(tmp_path / "source", name) for name in names])
    (served.state / "storage/local/hess/3").write_bytes(b"CONTENT")
    pairs = [Pair(tmp_path / f"back{name}", name) for name in [*names, "/hess/nowhere"]]
    failures = await client.files.fetch(pairs)
    assert {pair.name: error.reason for pair, error in failures.items()} == {
        "/hess/3": "CHECKSUM_MISMATCH",
        "/hess/nowhere": "FILE_NOT_FOUND",
    }
    assert len(list((tmp_path / "back/hess").iterdir())) == 19


async def test_a_part_that_is_whole_already_does_not_stop_a_download(
    client: AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"content")
    await client.files.put([Pair(source, "/hess/a")])
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    (tmp_path / ".back.khomas-part").write_bytes(b"content")
    await client.files.get([Pair(tmp_path / "back", "/hess/a")])
    assert (tmp_path / "back").read_bytes() == b"content"


async def test_nothing_is_overwritten_unless_asked(client: AsyncClient, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"content")
    await client.files.put([Pair(source, "/hess/a")])
    with pytest.raises(UsageError, match="exists"):
        await client.files.get([Pair(source, "/hess/a")])
    await client.files.get([Pair(source, "/hess/a")], overwrite=True)


async def test_a_refused_put_changes_nothing_and_says_why(client: AsyncClient, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"content")
    await client.files.put([Pair(source, "/hess/a")])
    source.write_bytes(b"other")
    with pytest.raises(KhomasError) as refused:
        await client.files.put([Pair(source, "/hess/b"), Pair(source, "/hess/a")])
    assert refused.value.reason == "FILE_EXISTS"
    assert [one.name async for one in client.files.find("/hess")] == ["/hess/a"]


async def test_a_user_never_meets_the_limit_of_a_call(client: AsyncClient) -> None:
    for start in range(0, 12_000, 6_000):
        files = [new_file(f"/hess/{number:06}") for number in range(start, start + 6_000)]
        await client.connection.call("catalog", "BatchCreateFiles", create(*files))
    found = await client.files.stat([f"/hess/{number:06}" for number in range(12_000)])
    assert len(found) == 12_000


async def test_errors_carry_reason_and_exit_code(client: AsyncClient) -> None:
    with pytest.raises(KhomasError) as missing:
        await client.files.stat(["/hess/nowhere"])
    assert (missing.value.reason, missing.value.exit_code) == ("FILE_NOT_FOUND", NOT_FOUND)
    async with AsyncClient("127.0.0.1:9", "token") as nobody:
        with pytest.raises(KhomasError, match="Is KHOMAS_ENDPOINT right") as silent:
            await nobody.catalog.keys()
    assert silent.value.exit_code == UNREACHABLE


async def test_transfers_are_cancelled_by_name_or_id(client: AsyncClient, tmp_path: Path) -> None:
    source, away = tmp_path / "source", tmp_path / "away"
    source.write_bytes(b"content")
    away.mkdir()
    await client.files.put([Pair(source, "/hess/a")])
    element = StorageElement(name="storageElements/away", media=StorageElement.MEDIA_DISK)
    element.access_points.add(protocol="posix", address=str(away))
    await client.storage.create_element(element)
    shutil.rmtree(away)  # the transfer is tried again and again
    (one,) = await client.storage.transfer(["/hess/a"], "away")
    name = one.transfer.name
    assert (await client.storage.cancel_transfers([name])).cancelled == 1
    assert (await client.storage.cancel_transfers([name.removeprefix("transfers/")])).already_final == 1
    with pytest.raises(UsageError, match="at least one transfer"):
        await client.storage.cancel_transfers([])
