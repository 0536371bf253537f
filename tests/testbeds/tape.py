"""An XRootD server in front of an emulated tape: files come to disk when the test delivers them.

The emulation is a program that the server's own plug-in for `prepare` starts; its answers are those of CTA, with the
place in the queue besides. Every request is written down, so that a test can count them.
"""

import json
import pwd
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.testbeds import install, packages
from tests.testbeds.processes import Processes, free_ports
from tests.testbeds.web import WebServer

_USER = "xrootd"
_CONF = """
all.role server
xrd.port {port}
xrd.network nodnr noipv6
all.adminpath {folder}/admin
all.pidpath {folder}/run
oss.localroot {folder}/disk
all.export / r/w nocheck
xrootd.chksum max 4 adler32 md5
ofs.preplib libXrdOfsPrepGPI.so -admit all -cgi -maxfiles {most} -maxquery 4 -maxreq 2 -run {folder}/tape.sh
"""
_PROGRAM = Path(__file__).with_name("tape_program.py")


@dataclass(frozen=True, slots=True)
class Tape:
    """A running one."""

    server: WebServer

    @property
    def address(self) -> str:
        """Of its root."""
        return f"root://127.0.0.1:{self.server.port}/"

    @property
    def disk(self) -> Path:
        """What can be read."""
        return self.server.folder / "disk"

    @property
    def tapes(self) -> Path:
        """What is on tape."""
        return self.server.folder / "tape"

    def keep(self, path: str, content: bytes) -> None:
        """Have a file on tape alone."""
        there = self.tapes / path
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes(content)

    def requests(self, kind: str = "stage", under: str = "") -> list[int]:
        """Return how many files below a folder each request of this kind was about, in their order."""
        lines = (self.server.folder / "requests").read_text().splitlines()
        found = [json.loads(line) for line in lines]
        numbers = [sum(path.startswith(under) for path in one["paths"]) for one in found if one["kind"] == kind]
        return [number for number in numbers if number]

    def waiting(self, under: str = "") -> list[str]:
        """Return what was asked for below a folder and is not on disk, in the order of the queue."""
        return [path for path in self._queue() if path.startswith(under) and not (self.disk / path).exists()]

    def deliver(self, number: int, under: str = "") -> list[str]:
        """Bring the first ones of the queue to disk, of those below a folder."""
        brought = self.waiting(under)[:number]
        for path in brought:
            there = self.disk / path
            there.parent.mkdir(parents=True, exist_ok=True)
            hidden = there.with_name(f".{there.name}.coming")
            shutil.copyfile(self.tapes / path, hidden)
            _give(there.parent)
            hidden.rename(there)
        return brought

    def archive(self, path: str) -> None:
        """Do what a tape system does by itself: write a file from disk to tape, and remove it from disk."""
        self.keep(path, (self.disk / path).read_bytes())
        (self.disk / path).unlink()

    def damage(self, path: str, words: str) -> None:
        """Have the tape system fail at a file."""
        (self.server.folder / "damaged").joinpath(path.replace("/", "\\")).write_text(words)

    def _queue(self) -> Sequence[str]:
        lines = (self.server.folder / "requests").read_text().splitlines()
        queue: dict[str, None] = {}
        for one in map(json.loads, lines):
            for path in one["paths"]:
                if one["kind"] == "stage":
                    queue[path] = None
                else:
                    queue.pop(path, None)
        return list(queue)


@contextmanager
def running(folder: Path, most: int = 1000) -> Iterator[Tape]:
    """Install, configure, start; a request may be about so many files."""
    install.debian(*packages.TAPE)
    folder.chmod(0o755)
    with Processes(folder / "log") as processes:
        port = free_ports(1)[0]
        for name in ("admin", "run", "disk", "tape", "damaged", "log"):
            (folder / name).mkdir(exist_ok=True)
            _give(folder / name)
        (folder / "requests").touch()
        _give(folder / "requests")
        shutil.copy(_PROGRAM, folder / "program.py")
        # The server starts it with its arguments; nothing of ours is needed for it.
        script = f'#!/bin/sh\nexec {sys.executable} -I -S {folder}/program.py {folder} "$@"\n'
        (folder / "tape.sh").write_text(script)
        (folder / "tape.sh").chmod(0o755)
        (folder / "xrootd.cfg").write_text(_CONF.format(folder=folder, port=port, most=most))
        server = WebServer("tape", folder, processes, port, folder / "disk", folder, folder / "none")
        server.argv = [
            "/usr/bin/xrootd", "-R", _USER, "-c", str(folder / "xrootd.cfg"), "-l", str(folder / "log/server.log"),
        ]  # fmt: skip
        server.start()
        try:
            yield Tape(server)
        finally:
            server.stop()


def _give(path: Path) -> None:
    user = pwd.getpwnam(_USER)
    shutil.chown(path, user.pw_uid, user.pw_gid)
