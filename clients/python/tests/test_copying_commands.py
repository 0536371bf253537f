"""put, get, cp and sync from the command line, against real services."""

import asyncio
import io
import json
import os
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import closing, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from khomas.api.storage.v1.storage_element_pb2 import StorageElement
from khomas.catalog.app import service as catalog
from khomas.cli.main import main
from khomas.client import AsyncClient
from khomas.kit.testing import Served, serve
from khomas.storage.app import service as storage

MIB = 1024 * 1024
NAMES = ("a b", "é", "日本/語 %20", "#x?y=z&", "quo'te\"s", ".hidden", "-dash")
# Fetches until it has seen so many bytes, says so and waits.
STALLED = """
import sys, time
from pathlib import Path
from khomas.client import Client
from khomas.client.pairs import Pair

seen = 0
def progress(length):
    global seen
    seen += length
    if seen >= int(sys.argv[3]):
        print("stalled", flush=True)
        time.sleep(600)

with Client() as client:
    client.files.{verb}([Pair(Path(sys.argv[1]), sys.argv[2])], progress=progress)
"""


@dataclass(frozen=True, slots=True)
class Shell:
    """Runs commands as a user with a token does."""

    served: Served
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "KHOMAS_ENDPOINT": self.served.endpoint, "BEARER_TOKEN": self.served.token()}

    async def __call__(self, *arguments: str | Path) -> tuple[int, str, str]:
        """Run a command in a thread of this process: most of what a process of its own costs is its start."""
        out, said = io.StringIO(), io.StringIO()

        def command() -> int:
            with redirect_stdout(out), redirect_stderr(said), pytest.raises(SystemExit) as left:
                main()
            assert isinstance(left.value.code, int)
            return left.value.code

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["khomas", *map(str, arguments)])
            for name in ("KHOMAS_ENDPOINT", "BEARER_TOKEN"):
                patch.setenv(name, self.environment[name])
            patch.chdir(self.folder)
            code = await asyncio.wait_for(asyncio.to_thread(command), 100)
        return code, out.getvalue(), said.getvalue()

    async def killed(self, verb: str, path: Path, name: str, after: int) -> None:
        """Begin and be killed in the middle."""
        program = STALLED.replace("{verb}", verb)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, path, name, str(after), env=self.environment, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 100) == b"stalled\n"
        process.send_signal(signal.SIGKILL)
        await process.wait()


@pytest.fixture
async def shell(tmp_path: Path) -> AsyncIterator[Shell]:
    (tmp_path / "here").mkdir()
    settings = {"storage": {"poll": 0.05, "transfer_pause": 0.05}}
    async with serve(catalog, storage, state=tmp_path / "state", settings=settings) as served:
        yield Shell(served, tmp_path / "here")


def fill(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def actions(out: str) -> dict[str, str]:
    rows = [json.loads(line) for line in out.splitlines()]
    return {row["name"]: row["action"] for row in rows}


async def run(*command: str | Path) -> None:
    process = await asyncio.create_subprocess_exec(*command)
    assert await process.wait() == 0


async def test_killed_get_goes_on_where_it_was(shell: Shell) -> None:
    content = os.urandom(24 * MIB)
    fill(shell.folder, {"a": content})
    assert (await shell("put", "a", "/hess/a"))[0] == 0

    await shell.killed("get", shell.folder / "back", "/hess/a", 10 * MIB)

    part = shell.folder / ".back.khomas-part"
    assert not (shell.folder / "back").exists()
    assert 10 * MIB <= part.stat().st_size < len(content)
    before = part.stat().st_ino
    code, _, said = await shell("cp", "lfn:/hess/a", "back")
    assert code == 0, said
    assert (shell.folder / "back").read_bytes() == content
    # The same bytes on the disk, completed.
    assert (shell.folder / "back").stat().st_ino == before
    assert list(shell.folder.glob(".*")) == []


async def test_killed_put_shows_nothing_and_is_repeated(shell: Shell) -> None:
    content = os.urandom(24 * MIB)
    fill(shell.folder, {"f/a": content, "f/b": b"b"})
    assert (await shell("put", "f/b", "/hess/f/b"))[0] == 0

    await shell.killed("put", shell.folder / "f/a", "/hess/f/a", 10 * MIB)

    _, listed, _ = await shell("find", "/hess", "-q")
    assert listed.split() == ["/hess/f/b"]
    code, out, said = await shell("put", "f", "/hess/f", "--skip-same", "-q")
    assert (code, out.split()) == (0, ["/hess/f/a"]), said
    assert "1 of 2 files are in the catalogue already" in said
    code, out, _ = await shell("put", "f", "/hess/f", "--skip-same", "-q")
    assert (code, out) == (0, "")


async def test_put_over_another_content_says_the_way_out_and_sends_nothing(shell: Shell) -> None:
    fill(shell.folder, {"f/a": b"first", "f/b": b"b"})
    await shell("put", "f/a", "/hess/f/a")
    fill(shell.folder, {"f/a": b"other"})
    code, _, said = await shell("put", "f", "/hess/f", "--skip-same")
    assert code == 1
    assert "khomas rm /hess/f/a" in said
    assert (await shell("find", "/hess", "-q"))[1].split() == ["/hess/f/a"]


async def test_get_skips_what_is_here_and_refuses_what_differs(shell: Shell) -> None:
    fill(shell.folder, {"f/a": b"first", "f/b": b"b"})
    await shell("put", "f", "/hess/f")
    assert (await shell("get", "/hess/f/a"))[0] == 0
    code, out, said = await shell("get", "/hess/f", "--skip-same")
    assert (code, out.split()) == (0, ["b"]), said
    fill(shell.folder, {"b": b"B"})
    code, _, said = await shell("get", "/hess/f", "--skip-same")
    assert code == 2
    assert "b exists" in said
    assert (await shell("get", "/hess/f", "--skip-same", "--overwrite"))[0] == 0
    assert (shell.folder / "b").read_bytes() == b"b"


async def test_names_of_all_kinds_come_and_go(shell: Shell) -> None:
    files = {name: name.encode() for name in NAMES}
    fill(shell.folder / "f", files)
    code, _, said = await shell("cp", "f", "lfn:/hess/f é")
    assert code == 0, said
    code, _, said = await shell("cp", "/hess/f é", "back")
    assert code == 0, said
    assert content_of(shell.folder / "back") == files
    code, out, said = await shell("sync", "back", "/hess/f é", "--json", "--all")
    assert set(actions(out).values()) == {"same"}, said


@pytest.mark.parametrize("name", ["e\u0301", "100%", "%2e%2e", "a\nb"])
async def test_names_that_no_lfn_can_have_are_refused_before_anything_is_sent(shell: Shell, name: str) -> None:
    fill(shell.folder / "f", {"good": b"", name: b""})
    code, _, said = await shell("put", "f", "/hess/f")
    assert code == 2
    assert "rename it" in said


async def test_thousand_small_files_are_copied_both_ways(shell: Shell) -> None:
    files = {f"{number // 100}/{number}": f"content {number}".encode() for number in range(1001)}
    fill(shell.folder / "f", files)
    code, out, said = await shell("cp", "f", "lfn:/hess/f")
    assert (code, len(out.split())) == (0, 1001), said
    code, out, said = await shell("cp", "/hess/f", "back")
    assert (code, len(out.split())) == (0, 1001), said
    assert content_of(shell.folder / "back") == files
    (shell.folder / "back/7/777").unlink()
    code, out, said = await shell("cp", "/hess/f", "back")
    assert (code, out.split()) == (0, ["back/7/777"]), said
    code, out, said = await shell("sync", "/hess/f", "back")
    assert (code, out) == (0, ""), said
    assert said.strip() == "1001 same"


async def test_cp_tells_local_names_from_lfns(shell: Shell) -> None:
    fill(shell.folder, {"a": b"a"})
    for arguments, told in {
        ("a", "/hess/a"): "write file:/hess/a or lfn:/hess/a",
        ("a", "b"): "both are on this machine",
        ("lfn:/hess/a", "lfn:/hess/b"): "a file of the catalogue has one name",
        ("a", "se:local"): "give the file a name in the catalogue",
        ("a", "lfn:hess"): "an LFN begins with /",
        ("missing", "lfn:/hess/a"): "there is no file missing",
    }.items():
        code, _, said = await shell("cp", *arguments)
        assert code == 2, said
        assert told in said
    assert (await shell("cp", "a", "lfn:/hess/a"))[0] == 0
    assert (await shell("cp", "/hess/a", "file:b"))[0] == 0
    assert (shell.folder / "b").read_bytes() == b"a"
    # Into folders, by the slash and as they are there.
    assert (await shell("cp", "a", "b", "/hess/in/"))[0] == 0
    assert (await shell("cp", "/hess/in", "into/"))[0] == 0
    assert content_of(shell.folder / "into") == {"in/a": b"a", "in/b": b"a"}
    assert (await shell("cp", "/hess/a", "into"))[0] == 0
    assert (shell.folder / "into/a").read_bytes() == b"a"


async def test_cp_to_a_storage_element_wants_copies(shell: Shell, tmp_path: Path) -> None:
    fill(shell.folder, {"f/a": b"a", "f/b": b"b"})
    (tmp_path / "mirror").mkdir()
    element = StorageElement(name="storageElements/mirror", media=StorageElement.MEDIA_DISK)
    element.access_points.add(protocol="posix", address=str(tmp_path / "mirror"))
    async with AsyncClient(shell.served.endpoint, shell.served.token()) as client:
        await client.storage.create_element(element)
    await shell("cp", "f", "lfn:/hess/f")
    code, out, said = await shell("cp", "/hess/f", "se:mirror", "--wait")
    assert (code, len(out.splitlines())) == (0, 2), said
    assert content_of(tmp_path / "mirror/hess/f") == {"a": b"a", "b": b"b"}


async def test_sync_in_brings_what_is_missing_and_tells_what_differs(shell: Shell) -> None:
    fill(shell.folder, {"f/same": b"same", "f/changed": b"first"})
    await shell("sync", "f", "lfn:/hess/f")
    fill(shell.folder, {"f/changed": b"other", "f/new/one": b"new"})

    code, out, said = await shell("sync", "f", "/hess/f", "--json", "--dry-run")
    assert code == 1
    assert actions(out) == {"/hess/f/new/one": "put", "/hess/f/changed": "differs"}, said
    assert len((await shell("find", "/hess", "-q"))[1].split()) == 2

    code, out, said = await shell("sync", "f", "/hess/f")
    assert code == 1
    assert "files never change" in out
    assert "1 differs" in said

    code, out, said = await shell("sync", "f", "/hess/f", "--json", "--delete-replaced", "new calibration")
    assert (code, actions(out)) == (0, {"/hess/f/changed": "put replacing"}), said
    assert (await shell("cp", "/hess/f", "back"))[0] == 0
    assert content_of(shell.folder / "back") == content_of(shell.folder / "f")


async def test_sync_out_makes_a_folder_like_the_catalogue(shell: Shell) -> None:
    fill(shell.folder, {"f/a": b"a", "f/b/c": b"c"})
    await shell("sync", "f", "lfn:/hess/f")
    assert (await shell("sync", "/hess/f", "back"))[0] == 0
    fill(shell.folder, {"back/a": b"A", "back/own": b"mine"})
    (shell.folder / "back/b/c").unlink()

    code, out, said = await shell("sync", "/hess/f", "back", "--json")
    assert code == 0, said
    assert actions(out) == {"/hess/f/a": "get over", "/hess/f/b/c": "get"}
    assert content_of(shell.folder / "back") == content_of(shell.folder / "f") | {"own": b"mine"}

    code, out, said = await shell("sync", "/hess/f", "back", "--json", "--delete")
    assert (code, actions(out)) == (0, {"/hess/f/own": "delete"}), said
    assert content_of(shell.folder / "back") == content_of(shell.folder / "f")

    code, _, said = await shell("sync", "f", "/hess/f", "--delete")
    assert code == 2
    assert "nothing is deleted in the catalogue" in said


async def test_sync_trusts_what_it_has_read_unless_told_not_to(shell: Shell, own_cache: Path) -> None:
    fill(shell.folder, {"f/a": b"a"})
    await shell("sync", "f", "lfn:/hess/f")
    await shell("sync", "/hess/f", "back")
    # Somebody's memory is wrong.
    with closing(sqlite3.connect(own_cache / "khomas/checksums.sqlite")) as database, database:
        assert database.execute("UPDATE checksum SET adler32 = '00000000'").rowcount == 1
    _, out, said = await shell("sync", "/hess/f", "back", "--json", "--dry-run")
    assert actions(out) == {"/hess/f/a": "get over"}, said
    code, out, said = await shell("sync", "/hess/f", "back", "--json", "--checksum", "--dry-run")
    assert (code, actions(out)) == (0, {}), said


async def test_sync_sees_a_change_behind_an_old_time(shell: Shell) -> None:
    fill(shell.folder, {"f/a": b"a"})
    await shell("sync", "f", "lfn:/hess/f")
    await shell("sync", "/hess/f", "back")
    path = shell.folder / "back/a"
    before = path.stat()
    path.write_bytes(b"b")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    _, out, said = await shell("sync", "/hess/f", "back", "--json", "--dry-run")
    assert actions(out) == {"/hess/f/a": "get over"}, said


async def test_full_disk_is_told_before_the_first_byte(shell: Shell) -> None:
    content = os.urandom(6 * MIB)
    fill(shell.folder, {"a": content})
    await shell("put", "a", "/hess/a")
    small = shell.folder / "small"
    small.mkdir()
    await run("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", small)
    try:
        code, _, said = await shell("cp", "/hess/a", "small/a")
        assert code == 1
        assert "make room, then repeat" in said
        assert list(small.iterdir()) == []
        await run("mount", "-o", "remount,size=16m", small)
        assert (await shell("cp", "/hess/a", "small/a"))[0] == 0
        assert (small / "a").read_bytes() == content
    finally:
        await run("umount", small)


async def test_interrupted_get_says_how_to_go_on(shell: Shell) -> None:
    fill(shell.folder, {"a": os.urandom(8 * MIB)})
    await shell("put", "a", "/hess/a")
    program = (
        "import sys, time; from khomas.cli import running; from khomas.cli.main import main\n"
        "def slow(self, length): print('moving', flush=True); time.sleep(0.5)\n"
        "running.Progress.__call__ = slow; main()"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, "get", "/hess/a", "--to", "back",
        env=shell.environment, cwd=shell.folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    await asyncio.wait_for(process.stdout.readline(), 100)
    process.send_signal(signal.SIGINT)
    _, said = await asyncio.wait_for(process.communicate(), 100)
    assert process.returncode == 130
    assert b"--skip-same goes on" in said
    assert not (shell.folder / "back/a").exists()
    assert (await shell("get", "/hess/a", "--to", "back", "--skip-same"))[0] == 0


async def test_granted_address_is_read_without_a_token(shell: Shell) -> None:
    fill(shell.folder, {"run.fits": b"events"})
    await shell("put", "run.fits", "/hess/run.fits")

    code, out, said = await shell("grant", "/hess/run.fits", "--for", "10min", "-q")
    missing, _, why = await shell("grant", "/hess/none.fits")

    assert code == 0, said
    async with aiohttp.ClientSession() as http, http.get(out.strip()) as answer:
        assert (answer.status, await answer.read()) == (200, b"events")
    assert missing == 4, why


async def test_find_with_the_name_of_a_file_shows_the_state_of_its_copies(shell: Shell) -> None:
    fill(shell.folder, {"run.fits": b"events"})
    await shell("put", "run.fits", "/hess/run.fits")

    code, out, said = await shell("find", "/hess/run.fits")
    _, nothing, _ = await shell("find", "/hess/none.fits", "--json")

    assert (code, nothing) == (0, ""), said
    assert "local:AVAILABLE" in out
