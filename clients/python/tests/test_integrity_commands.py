"""Commands about the health of storage elements, against real services."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from khomas.api.storage.v1.storage_element_pb2 import StorageElement
from khomas.catalog.app import service as catalog
from khomas.client import AsyncClient
from khomas.client.files import Pair
from khomas.kit.testing import Served, serve
from khomas.storage.app import service as storage

OLD = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Shell:
    """Runs commands as a user with a token does."""

    served: Served
    mirror: Path

    async def __call__(self, *arguments: str) -> tuple[int, str, str]:
        environment = {**os.environ, "KHOMAS_ENDPOINT": self.served.endpoint, "BEARER_TOKEN": self.served.token()}
        command = (sys.executable, "-m", "khomas.cli.main", *arguments)
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=pipe, stderr=pipe)
        out, said = await asyncio.wait_for(process.communicate(), 120)
        assert process.returncode is not None
        return process.returncode, out.decode(), said.decode()

    async def rows(self, *arguments: str) -> list[dict[str, Any]]:
        """Run a command and return what it prints as JSON."""
        _, out, said = await self(*arguments, "--json")
        assert out or not said, said
        return [json.loads(line) for line in out.splitlines()]

    def dark(self, name: str) -> None:
        """Lay an old file that nobody knows onto the mirror."""
        (self.mirror / name).write_bytes(b"nobody knows me")
        os.utime(self.mirror / name, (OLD, OLD))


@pytest.fixture
async def shell(tmp_path: Path) -> AsyncIterator[Shell]:
    """Give a shell beside two StorageElements with one file each."""
    settings = {"storage": {"poll": 0.05, "transfer_pause": 0.05, "probe_interval": 0.2, "probe_poll": 0.1}}
    async with serve(catalog, storage, state=tmp_path / "state", settings=settings) as served:
        async with AsyncClient(served.endpoint, served.token()) as client:
            source, mirror = tmp_path / "source", tmp_path / "mirror"
            source.write_bytes(b"content")
            mirror.mkdir()
            element = StorageElement(name="storageElements/mirror", media=StorageElement.MEDIA_DISK)
            element.access_points.add(protocol="posix", address=str(mirror))
            await client.storage.create_element(element)
            await client.files.put([Pair(source, "/hess/a")])
            (wanted,) = await client.storage.transfer(["/hess/a"], "mirror")
            await client.links.wait([wanted.transfer.name])
        yield Shell(served, mirror)


async def test_check_says_what_differs_and_repairs_are_accepted_in_bulk(shell: Shell) -> None:
    assert (await shell("se", "check", "mirror"))[0] == 0
    shell.dark("one")
    shell.dark("two")

    code, out, _ = await shell("se", "check", "mirror", "--mode", "full", "--json")
    (found,) = [row for row in await shell.rows("incident", "ls") if row["path"] == "one"]
    shown = await shell("incident", "show", found["id"])
    why = await shell("why", f"incidents/{found['id']}")
    dry = await shell.rows("incident", "apply", "--filter", "kind = DARK", "--reason", "junk", "--dry-run")
    accepted = await shell.rows("incident", "apply", "--filter", "kind = DARK", "--reason", "junk")

    assert (code, json.loads(out)["findings"]) == (1, {"dark": 2})
    assert (found["kind"], found["state"], found["proposed"]) == ("DARK", "OPEN", "QUARANTINE")
    assert f"khomas incident apply incidents/{found['id']} --repair QUARANTINE" in shown[1]
    assert why[1].startswith("OPEN (DARK): one on mirror (15 bytes) is in no catalogue.")
    assert [dry[0]["accepted"], accepted[0]["accepted"]] == [2, 2]
    for _ in range(300):
        if not await shell.rows("incident", "ls"):
            break
        await asyncio.sleep(0.2)
    assert [path.name for path in shell.mirror.iterdir() if path.is_file()] == []
    (one, *_) = await shell.rows("se", "checks")
    assert (one["storage_element"], one["dark"]) == ("mirror", 2)


async def test_repairs_of_named_incidents_are_waited_for(shell: Shell) -> None:
    shell.dark("one")
    await shell("se", "check", "mirror")
    (found,) = await shell.rows("incident", "ls")

    accepted, repaired = await shell.rows("incident", "apply", found["id"], "--reason", "junk", "--wait")

    assert (accepted["accepted"], repaired["id"], repaired["state"]) == (1, found["id"], "RESOLVED")
    assert (await shell("incident", "apply", "--filter", "kind = DARK", "--reason", "junk", "--wait"))[0] == 2


async def test_table_shows_probes_and_the_matrix_both_ways(shell: Shell) -> None:
    ways: list[dict[str, Any]] = []
    for _ in range(300):
        ways = await shell.rows("se", "matrix")
        if len(ways) == 4:
            break
        await asyncio.sleep(0.2)

    rows = {row["id"]: row for row in await shell.rows("se", "ls")}
    table = (await shell("se", "matrix"))[1]

    assert {(row["source"], row["destination"]) for row in ways} == {
        (one, other) for one in ("local", "mirror") for other in ("local", "mirror")
    }
    assert all(row["success"] == 100 for row in ways)
    assert (rows["mirror"]["health"], rows["mirror"]["success"], rows["mirror"]["incidents"]) == ("ok", "100%", 0)
    assert rows["mirror"]["probed"]
    assert "MB/s" in table


async def test_failing_probe_is_shown_with_its_step(shell: Shell) -> None:
    private = shell.mirror / ".khomas"
    for _ in range(300):
        if (private / "probes").is_dir():
            break
        await asyncio.sleep(0.2)
    private.rename(shell.mirror / "aside")
    private.write_text("a file stands where the service needs a folder")

    health = ""
    for _ in range(300):
        (health,) = [row["health"] for row in await shell.rows("se", "ls") if row["id"] == "mirror"]
        if health != "ok":
            break
        await asyncio.sleep(0.2)

    assert health.startswith("write failed ")


async def test_care_is_shown_and_changed(shell: Shell) -> None:
    before = await shell.rows("se", "care", "mirror")
    after = await shell.rows("se", "care", "mirror", "--verify-period", "30d", "--deletions-per-second", "5", "--ask")

    assert before[0]["verify_period"] == "7776000s"
    assert (after[0]["verify_period"], after[0]["deletions_per_second"]) == ("2592000s", 5)
    assert "repair_automatically" not in after[0]


async def test_release_wants_a_reason(shell: Shell) -> None:
    code, _, said = await shell("se", "check", "some-id", "--release")

    assert (code, "--reason" in said) == (2, True)
