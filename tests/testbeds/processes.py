"""Servers of a test bed: started with a log, waited for under a deadline, stopped with all that they started."""

import contextlib
import os
import pwd
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

if TYPE_CHECKING:
    from tests.testbeds.namespace import Namespace

_STOP_SECONDS = 10.0
_TAIL = 2000
# A variable of the environment by which daemons are known that left the session of who started them.
_MARK = "KHOMAS_TEST_BED"


class NotReadyError(Exception):
    """A server of a test bed did not get ready in time."""


class Processes:
    """What one bed started, and nothing else."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.logs.mkdir(parents=True, exist_ok=True)
        self._started: list[subprocess.Popen[bytes]] = []
        self._mark = uuid4().hex

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(
        self,
        argv: Sequence[str],
        *,
        name: str,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        user: pwd.struct_passwd | None = None,
        namespace: "Namespace | None" = None,
    ) -> "subprocess.Popen[bytes]":
        """Start a server in a session of its own; what it prints goes to `<name>.log`. `env` is added to ours."""
        command = namespace.enter(argv) if namespace is not None else list(argv)
        if user is not None:
            command = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--init-groups", "--", *command]
        with (self.logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=cwd,
                env={**os.environ, **(env or {}), _MARK: self._mark},
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def kept(
        self, process: "subprocess.Popen[bytes] | None", argv: Sequence[str], *, name: str, env: Mapping[str, str]
    ) -> "subprocess.Popen[bytes]":
        """Start a server that does not run; one ends at once when somebody's connection was given its port."""
        if process is not None and process.poll() is None:
            return process
        started = self.start(argv, name=name, env=env)
        time.sleep(0.2)
        return started

    def stop(self) -> None:
        """End everything, the last one first."""
        for process in reversed(self._started):
            end(process)
        self._started.clear()
        self.end_left()

    def end_left(self, seconds: float = _STOP_SECONDS) -> None:
        """End daemons whose parents have ended without them, and wait until they write no more."""
        deadline = time.monotonic() + seconds
        while (left := _with(f"{_MARK}={self._mark}".encode())) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def tail(self) -> str:
        """The ends of all logs, for an error message."""
        logs = sorted(self.logs.glob("*.log"))
        return "\n".join(f"--- {log.name}\n{log.read_bytes()[-_TAIL:].decode('utf-8', 'replace')}" for log in logs)


def end(process: "subprocess.Popen[bytes]", seconds: float = _STOP_SECONDS) -> None:
    """End a server and what it started: SIGTERM, after some time SIGKILL."""
    for number, patience in ((signal.SIGTERM, seconds), (signal.SIGKILL, seconds)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGCONT)
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _with(mark: bytes) -> list[int]:
    """Processes with something in the environment that they were started with."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        # Another one's, or gone.
        with contextlib.suppress(OSError):
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def until(check: Callable[[], object], seconds: float, what: str, processes: Processes | None = None) -> None:
    """Wait until something is true; a check that fails with an error is not true yet."""
    deadline = time.monotonic() + seconds
    trouble = ""
    while time.monotonic() < deadline:
        try:
            if check():
                return
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            trouble = str(error)
        time.sleep(0.05)
    logs = processes.tail() if processes is not None else ""
    raise NotReadyError(f"{what} not within {seconds:g} s {trouble}\n{logs}")


def answers(argv: Sequence[str], env: Mapping[str, str] | None = None, seconds: float = 15.0) -> bool:
    """Whether a command ends with 0, under a deadline of its own."""
    done = subprocess.run(
        argv,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **(env or {})},
        timeout=seconds,
    )
    return done.returncode == 0


def free_ports(number: int) -> list[int]:
    """Ports of loopback that nobody uses now."""
    import socket

    sockets = [socket.socket() for _ in range(number)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
