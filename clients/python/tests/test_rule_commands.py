"""Commands about rules, policies and drains, against real services."""

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
    """Give a shell beside a file of a dataset on one StorageElement and an empty other one."""
    settings = {"storage": {"poll": 0.05, "transfer_pause": 0.05, "drain_pause": 0.2, "deletion_pause": 0.05}}
    async with serve(catalog, storage, state=tmp_path / "state", settings=settings) as served:
        async with AsyncClient(served.endpoint, served.token()) as client:
            source = tmp_path / "source"
            source.write_bytes(b"content")
            await client.files.put([Pair(source, "/hess/a")])
            await client.catalog.create_dataset("crab", ["/hess/a"])
            (tmp_path / "mirror").mkdir()
            element = StorageElement(name="storageElements/mirror", media=StorageElement.MEDIA_DISK, site="hd")
            element.access_points.add(protocol="posix", address=str(tmp_path / "mirror"))
            await client.storage.create_element(element)
        yield Shell(served)


async def test_rule_is_previewed_made_shown_changed_and_ended(shell: Shell) -> None:
    code, out, said = await shell("rule", "preview", "site=hd", "--dataset", "crab", "--json")
    assert (code, json.loads(out)["to_copy"], json.loads(out)["bytes"]) == (0, 1, 7)
    assert "1 files, 7 B; to copy 7 B" in said

    code, out, said = await shell("rule", "create", "*", "--dataset", "crab", "--copies", "2", "--wait", "--json")
    assert code == 0, said
    made = json.loads(out)
    assert (made["state"], made["ok"], made["what"]) == ("OK", 2, "datasets/crab")

    code, out, _ = await shell("rule", "ls", "--json")
    assert [json.loads(line)["id"] for line in out.splitlines()] == [made["id"]]
    code, out, _ = await shell("rule", "copies", made["id"], "-o", "file,at")
    assert (code, {line.split()[1] for line in out.splitlines()[1:]}) == (0, {"local", "mirror"})
    code, out, _ = await shell("why", f"replicationRules/{made['id']}")
    assert out.startswith("OK: 2 of 2 copies of 1 files are there")
    code, out, _ = await shell("rule", "update", made["id"], "--copies", "1", "--lifetime", "30d", "--json")
    assert (code, json.loads(out)["copies"], bool(json.loads(out)["until"])) == (0, 1, True)
    code, out, _ = await shell("rule", "rm", made["id"], "--json")
    assert (code, json.loads(out)) == (0, {"released_copies": 1})


async def test_rule_that_means_nothing_says_where_and_what_is_near(shell: Shell) -> None:
    code, _, said = await shell("rule", "create", "mirorr", "--dataset", "crab")

    assert code != 0
    assert "at position 0" in said
    assert "mirror" in said


async def test_copies_are_deleted_but_for_those_that_are_needed(shell: Shell) -> None:
    await shell("rule", "create", "local", "--dataset", "crab", "--wait")
    await shell("transfer", "create", "/hess/a", "--to", "mirror", "--wait")

    code, out, said = await shell("se", "rm-replicas", "local", "/hess/a")
    assert (code, out.strip()) == (1, "0 are going to be deleted, 1 stay")
    code, out, _ = await shell("se", "rm-replicas", "local", "/hess/a", "--json")
    assert (code, json.loads(out)["deleting"], list(json.loads(out)["kept"])) == (1, 0, ["/hess/a"])
    assert "replicationRules/" in said
    code, out, _ = await shell("se", "rm-replicas", "mirror", "/hess/a")
    assert (code, out.strip()) == (0, "1 are going to be deleted, 0 stay")


async def test_policy_is_made_listed_and_forgotten(shell: Shell) -> None:
    code, out, said = await shell("policy", "create", "all", "*", "site=hd", "--existing", "--lifetime", "7d")
    assert (code, out.strip()) == (0, "all"), said

    code, out, _ = await shell("policy", "ls", "--json")
    assert json.loads(out)["datasets"] == "datasets/*"
    assert json.loads((await shell("policy", "suspend", "all", "--json"))[1])["suspended"] is True
    assert json.loads((await shell("policy", "rm", "all", "--json"))[1]) == {"id": "all"}
    assert (await shell("policy", "ls", "-q"))[1] == ""


async def test_drain_is_begun_explained_and_taken_back(shell: Shell) -> None:
    await shell("rule", "create", "local", "--dataset", "crab", "--wait")

    code, out, _ = await shell("se", "drain", "local", "--json")
    assert (code, json.loads(out)["state"]) == (0, "DRAINING")
    code, out, _ = await shell("se", "ls", "-o", "id,health")
    assert ["local", "draining"] in [line.split() for line in out.splitlines()]
    code, out, _ = await shell("se", "why", "local")
    assert "files are left" in out
    code, out, _ = await shell("se", "drain", "local", "--cancel", "--json")
    assert json.loads(out)["state"] == "CANCELLED"


async def test_drain_is_waited_for_to_its_end(shell: Shell) -> None:
    await shell("rule", "create", "site=hd", "--dataset", "crab", "--wait")

    code, out, said = await shell("se", "drain", "local", "--wait", "--timeout", "60s", "--json")

    assert code == 0, said
    assert (json.loads(out)["state"], json.loads(out)["files_left"]) == ("DRAINED", 0)


async def test_drain_that_cannot_end_is_not_waited_for_for_ever(shell: Shell) -> None:
    await shell("rule", "create", "local", "--dataset", "crab", "--wait")

    assert (await shell("se", "drain", "local", "--wait", "--timeout", "1s"))[0] == 124


async def test_second_copy_goes_to_an_element_on_tape(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "library").mkdir()
    code, out, said = await shell("se", "create", "library", str(tmp_path / "library"), "--media", "tape")
    assert (code, out.strip()) == (0, "library"), said

    code, out, _ = await shell("rule", "create", "local | media=TAPE", "--dataset", "crab", "--copies", "2", "--wait")

    assert code == 0
    assert (tmp_path / "library" / "hess" / "a").read_bytes() == b"content"


async def test_element_gets_labels_that_rules_can_ask_for(shell: Shell) -> None:
    given = ("--label", "tier=1", "--label", "old=yes", "--weight", "5", "--high-watermark", "90", "--capacity", "2TB")
    code, out, said = await shell("se", "update", "mirror", *given)
    assert code == 0, said
    code, out, _ = await shell("se", "update", "mirror", "--label", "old=", "--json")

    found = json.loads(out)
    assert (found["labels"], found["weight"], found["high_watermark"]) == ({"tier": "1"}, 5, 90)
    assert found["capacity_bytes"] == 2 * 10**12
    code, out, _ = await shell("rule", "create", "tier=1", "--dir", "/hess", "--wait", "--json")
    assert (code, json.loads(out)["state"]) == (0, "OK")
