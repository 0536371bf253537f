"""What servers of files over HTTPS have in common: data in memory, a certificate, a token, start and stop."""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.testbeds import disks, voms
from tests.testbeds.processes import Processes, free_ports, until

_MIB = 1 << 20


@dataclass(slots=True)
class WebServer:
    """A running one. Its folders: `full` is a small disk, `forbidden` may only be read."""

    name: str
    folder: Path
    processes: Processes
    port: int
    # What it serves.
    data: Path
    authorities: Path
    # File with a token that lets in.
    token: Path
    argv: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    process: "subprocess.Popen[bytes] | None" = None
    scheme: str = "davs"
    host: str = "localhost"
    # Where the tree begins.
    root: str = ""

    @property
    def address(self) -> str:
        """Of its root."""
        return f"{self.scheme}://{self.host}:{self.port}{self.root}"

    def start(self) -> None:
        """Start it, if it is not there or has crashed; return when it listens."""
        until(self._there, 90, self.name, self.processes)

    def _there(self) -> bool:
        self.process = self.processes.kept(self.process, self.argv, name=self.name, env=self.env)
        return self.listens()

    def stop(self) -> None:
        """Kill it, with all its connections."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)
            self.process = None
        # Its children die a little later.
        until(lambda: not self.listens(), 30, f"end of {self.name}")

    def open_folder(self, name: str) -> Path:
        """Make an empty folder where the server, which runs then, may write."""
        self.start()
        folder = self.data / name
        folder.mkdir()
        folder.chmod(0o777)
        return folder

    def listens(self) -> bool:
        """Tell whether it can be reached."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return True
        except OSError:
            return False


@contextmanager
def prepared(folder: Path, name: str, *, token: Path | None = None) -> Iterator[WebServer]:
    """Make everything but the configuration; stop the server in the end."""
    folder.chmod(0o755)
    with ExitStack() as stack:
        bed = stack.enter_context(voms.running(folder / "people"))
        processes = stack.enter_context(Processes(folder / "log"))
        data = stack.enter_context(_disk(folder / "data"))
        data.chmod(0o777)
        stack.enter_context(disks.memory(data / "full", 4 * _MIB)).chmod(0o777)
        (data / "forbidden").mkdir(mode=0o755)
        (data / "forbidden/file").write_bytes(b"abc")
        shutil.copy(bed.host_certificate, folder / "host.pem")
        shutil.copy(bed.host_key, folder / "host.key")
        server = WebServer(name, folder, processes, free_ports(1)[0], data, bed.authorities, token or _password(folder))
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def _disk(folder: Path) -> Iterator[Path]:
    """Hold what is served in memory, which is fast; KHOMAS_TEST_ON_DISK=1 is for more than fits there."""
    if os.environ.get("KHOMAS_TEST_ON_DISK"):
        folder.mkdir()
        yield folder
    else:
        with disks.memory(folder, 8192 * _MIB) as made:
            yield made


def _password(folder: Path) -> Path:
    """Make a token that says nothing to anybody but this server."""
    path = folder / "token"
    path.touch(mode=0o600)
    path.write_text(os.urandom(16).hex())
    return path
