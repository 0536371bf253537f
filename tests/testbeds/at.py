"""A real atd with a spool of its own, in a mount namespace: the machine's own one, if there is any, is left alone."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.testbeds import install, packages
from tests.testbeds.processes import Processes, answers, until

_SPOOL = Path("/var/spool/cron")
_OWNER = "daemon"


@dataclass(slots=True)
class At:
    """A running one; commands that shall reach it are put behind `prefix`."""

    folder: Path
    processes: Processes
    holder: "subprocess.Popen[bytes]"
    # Above this load average `batch` starts nothing.
    load: float
    server: "subprocess.Popen[bytes] | None" = None

    @property
    def prefix(self) -> tuple[str, ...]:
        """What goes before a command."""
        return ("nsenter", f"--mount=/proc/{self.holder.pid}/ns/mnt", f"--wdns={self.folder}", "--")

    def start(self) -> None:
        """Start the daemon."""
        argv = [*self.prefix, "/usr/sbin/atd", "-f", "-b", "1", "-l", f"{self.load:g}"]
        self.server = self.processes.start(argv, name="atd")
        # `at` wakes the daemon by the id that it left there.
        until(lambda: (self.folder / "run/atd.pid").read_text().strip(), 15, "atd", self.processes)

    def stop(self) -> None:
        """Stop the daemon; jobs that it started go on, others wait."""
        assert self.server is not None
        # Jobs are in its process group.
        self.server.terminate()
        self.server.wait(15)
        (self.folder / "run/atd.pid").unlink(missing_ok=True)


@contextmanager
def running(folder: Path, *, load: float = 1000.0) -> Iterator[At]:
    """Install and start; a machine that is busy with tests shall not keep jobs waiting, hence the `load`."""
    install.debian(*packages.AT)
    with Processes(folder / "log") as processes:
        at = At(folder, processes, _hold(folder, processes), load)
        until((folder / "run/mounted").exists, 15, "the spool of at", processes)
        at.start()
        until(lambda: answers([*at.prefix, "atq"]), 15, "atq", processes)
        yield at


def _hold(folder: Path, processes: Processes) -> "subprocess.Popen[bytes]":
    """Start what the namespace lives as long as: there the spool is ours, and /run, where the daemon leaves its id."""
    folder.chmod(0o755)
    (folder / "run").mkdir()
    script = ["set -e", f"mount --bind {folder}/run /run"]
    for name in ("atjobs", "atspool"):
        _like_packaged(folder / name)
        script.append(f"mount --bind {folder / name} {_SPOOL / name}")
    # Jobs are counted up in this file.
    (folder / "atjobs/.SEQ").touch(mode=0o600)
    shutil.chown(folder / "atjobs/.SEQ", _OWNER, _OWNER)
    script += ["touch /run/mounted", "exec sleep infinity"]
    return processes.start(["unshare", "--mount", "--", "sh", "-c", "\n".join(script)], name="namespace")


def _like_packaged(folder: Path) -> None:
    folder.mkdir()
    shutil.chown(folder, _OWNER, _OWNER)
    folder.chmod(0o1770)
