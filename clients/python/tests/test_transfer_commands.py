"""Commands about transfers and links, against real services."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from khomas.api.storage.v1.storage_element_pb2 import StorageElement
from khomas.catalog.app import service as catalog
from khomas.client import AsyncClient
from khomas.client.files import Pair
from khomas.kit.testing import Served, serve
from khomas.storage.app import service as storage

CONTENT = b"content"


@dataclass(frozen=True, slots=True)
class Shell:
    """Runs commands as a user with a token does."""

    served: Served

    async def __call__(self, *arguments: str) -> tuple[int, str, str]:
        environment = {
            **os.environ,
            "KHOMAS_ENDPOINT": self.served.endpoint,
            "BEARER_TOKEN": self.served.token(),
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "khomas.cli.main",
            *arguments,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, said = await asyncio.wait_for(process.communicate(), 120)
        assert process.returncode is not None
        return process.returncode, out.decode(), said.decode()


@pytest.fixture
async def shell(tmp_path: Path) -> AsyncIterator[Shell]:
    """Give a shell beside a file on one StorageElement and an empty other one."""
    settings = {"storage": {"poll": 0.05, "transfer_pause": 0.05}}
    async with serve(catalog, storage, state=tmp_path / "state", settings=settings) as served:
        async with AsyncClient(served.endpoint, served.token()) as client:
            source = tmp_path / "source"
            source.write_bytes(CONTENT)
            await client.files.put([Pair(source, "/hess/a")])
            (tmp_path / "mirror").mkdir()
            element = StorageElement(name="storageElements/mirror", media=StorageElement.MEDIA_DISK)
            element.access_points.add(protocol="posix", address=str(tmp_path / "mirror"))
            await client.storage.create_element(element)
        yield Shell(served)


async def test_copy_is_waited_for_and_shown(shell: Shell, tmp_path: Path) -> None:
    code, out, said = await shell(
        "transfer", "create", "/hess/a", "--to", "mirror", "--share", "mc", "--within", "2h", "--wait"
    )
    name = out.split()[0]
    _, listed, _ = await shell("transfer", "ls", "--json", "--filter", "share = mc")
    _, shown, _ = await shell("transfer", "show", name)
    _, why, _ = await shell("why", name)
    _, links, _ = await shell("link", "ls", "--json")

    assert code == 0, said
    assert (tmp_path / "mirror/hess/a").read_bytes() == CONTENT
    row = json.loads(listed)
    assert (row["id"], row["from"], row["to"], row["state"], row["done"]) == (
        name,
        "local",
        "mirror",
        "SUCCEEDED",
        "100 %",
    )
    assert "attempt 1: SUCCEEDED from local, 7 bytes" in shown
    assert why.startswith("SUCCEEDED")
    assert json.loads(links)["files"] == 1


async def test_copy_that_fails_is_told_with_what_to_ask_next(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "state/storage/local/hess/a").write_bytes(b"another")

    code, out, said = await shell("transfer", "create", "/hess/a", "--to", "mirror", "--wait")

    name = out.split()[0]
    assert code == 1
    assert f"/hess/a: FAILED, no replica is left to read from; khomas why {name}" in said


async def test_copies_answer_in_json_when_wanted_and_when_ended(shell: Shell) -> None:
    code, out, said = await shell("transfer", "create", "/hess/a", "--to", "mirror", "--wait", "--json")

    wanted, ended = map(json.loads, out.splitlines())
    assert code == 0, said
    assert (wanted["id"], wanted["file"]) == (ended["id"], "/hess/a")
    assert ended["state"] == "SUCCEEDED"


async def test_copy_that_has_no_room_is_not_waited_for_for_ever(shell: Shell) -> None:
    await shell("se", "update", "mirror", "--capacity", "1B")

    code, out, said = await shell("transfer", "create", "/hess/a", "--to", "mirror", "--wait", "--timeout", "1s")

    assert (code, out.split()[1]) == (124, "/hess/a"), said
    assert (await shell("transfer", "watch", out.split()[0], "--timeout", "1s"))[0] == 124


async def test_bounds_are_set_listed_and_removed(shell: Shell) -> None:
    bounded = await shell("link", "limit", "--to", "mirror", "--streams", "3", "--rate", "100MB")
    _, listed, _ = await shell("link", "limits", "--json")
    removed = await shell("link", "limit", "--to", "mirror")
    _, left, _ = await shell("link", "limits", "--json")
    code, _, said = await shell("link", "limit", "--to", "miror", "--streams", "3")

    assert bounded[0] == removed[0] == 0
    assert json.loads(listed) == {
        "id": ">mirror",
        "from": "(any)",
        "to": "mirror",
        "streams": 3,
        "rate": 100_000_000,
    }
    assert left == ""
    assert code != 0
    assert "mirror" in said
