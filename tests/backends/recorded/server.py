"""Answers the commands of an emulated batch system over a socket."""

import json
import shutil
import signal
import socketserver
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.backends.recorded.batch_system import BatchSystem
from tests.testbeds.processes import Processes, until


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command prints and how it ends."""

    stdout: str = ""
    stderr: str = ""
    code: int = 0


@dataclass(frozen=True, slots=True)
class Call:
    """A command as a user typed it."""

    program: str
    arguments: list[str]
    cwd: str
    env: dict[str, str]
    stdin: str


class UsageError(Exception):
    """The command is refused with this sentence."""


def serve(folder: Path, system: BatchSystem, answer: Callable[[Call], Answer]) -> None:
    """Answer until SIGTERM; end all jobs then."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            call = Call(**json.loads(self.rfile.readline()))
            self.wfile.write(json.dumps(_answered(call, answer)).encode() + b"\n")

    class Server(socketserver.ThreadingUnixStreamServer):
        daemon_threads = True
        request_queue_size = 100

    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    address = folder / "server"
    address.unlink(missing_ok=True)
    with Server(str(address), Handler) as server:
        try:
            server.serve_forever(poll_interval=60)
        finally:
            address.unlink()
            system.end_all()


def _answered(call: Call, answer: Callable[[Call], Answer]) -> dict[str, Any]:
    try:
        given = answer(call)
    except UsageError as error:
        given = Answer("", f"{call.program}: {error}\n", 2)
    return {"stdout": given.stdout, "stderr": given.stderr, "code": given.code}


@contextmanager
def emulated(folder: Path, module: ModuleType, slots: int) -> Iterator[Path]:
    """Start an emulation with its commands in a folder; end it with all of its jobs."""
    folder.mkdir(parents=True, exist_ok=True)
    source = (Path(__file__).parent / "command.py").read_text()
    for program in module.PROGRAMS:
        path = folder / program
        path.write_text(f"#!{shutil.which('python3')} -ISE\n{source}")
        path.chmod(0o755)
    command = [sys.executable, "-m", module.__name__, str(folder), str(slots)]
    root = Path(__file__).parents[3]
    with Processes(folder / "log") as processes:
        processes.start(command, name="server", env={"PYTHONPATH": str(root)})
        until((folder / "server").exists, 30, "the emulated server", processes)
        yield folder
