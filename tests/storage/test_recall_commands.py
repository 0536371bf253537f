"""`khomas recall` against a storage service with an emulated tape."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.storage.tape import PATIENCE, Site, State, site_of
from tests.testbeds.tape import Tape


@pytest.fixture
async def site(tmp_path: Path, tape: Tape) -> AsyncIterator[Site]:
    async with site_of(tape, tmp_path) as running:
        yield running


async def khomas(site: Site, *arguments: str) -> tuple[int, str, str]:
    """Run a command as a user with a token does; return its exit code, output and errors."""
    served = site.storage.served
    environment = {**os.environ, "KHOMAS_ENDPOINT": served.endpoint, "BEARER_TOKEN": served.token()}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "khomas.cli.main", *arguments,
        env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, said = await asyncio.wait_for(process.communicate(), 2 * PATIENCE)
    assert process.returncode is not None
    return process.returncode, out.decode(), said.decode()


async def test_files_are_waited_for_and_shown(site: Site) -> None:
    names = site.keep(2)
    waiting = asyncio.create_task(khomas(site, "recall", *names, "--wait", "--for", "2d", "--json"))
    await site.deliver(2)
    code, out, said = await waiting
    assert code == 0, said
    assert [json.loads(line)["state"] for line in out.splitlines()] == ["STATE_ONLINE"] * 2

    _, listed, _ = await khomas(site, "recall", "ls", "--json", "--filter", "state = ONLINE")
    rows = [json.loads(line) for line in listed.splitlines()]
    assert {row["file"] for row in rows} == set(names)
    _, why, _ = await khomas(site, "why", rows[0]["id"])
    assert "is on disk until" in why


async def test_recall_that_waits_is_explained_and_cancelled(site: Site) -> None:
    (name,) = site.keep(1)
    code, out, said = await khomas(site, "recall", name)
    assert code == 0, said
    await site.until_all(State.STATE_REQUESTED)
    recall = out.split()[0]
    _, why, _ = await khomas(site, "why", recall)
    assert "is to come from tape, request" in why
    assert f"khomas recall cancel {recall}" in why
    assert (await khomas(site, "recall", "cancel", recall))[1] == "1 cancelled, 0 untouched (final)\n"


async def test_file_that_is_not_on_tape_is_told(site: Site) -> None:
    await site.storage.store("/hess/on-disk", b"abc")
    code, _, said = await khomas(site, "recall", "/hess/on-disk")
    assert (code, "no good copy on tape" in said) == (1, True)
    assert (await khomas(site, "recall"))[0] != 0
