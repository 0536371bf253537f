"""A network of its own, for servers that listen on every address and cannot be told otherwise."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests.testbeds import install, packages

_STOP_SECONDS = 10.0


class Namespace:
    """A network namespace with loopback, and an address beside it, without which some programs find no name."""

    def __init__(self, address: str = "10.255.7.1") -> None:
        install.debian(*packages.NAMESPACE)
        # The namespace lives as long as this process.
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--", "sleep", "infinity"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.address = address
        self._wait()
        for command in (["link", "set", "lo", "up"], ["addr", "add", f"{address}/32", "dev", "lo"]):
            subprocess.run(self.enter(["ip", *command]), check=True, timeout=15)

    @property
    def path(self) -> Path:
        """What nsenter takes."""
        return Path(f"/proc/{self._holder.pid}/ns/net")

    def enter(self, argv: Sequence[str]) -> list[str]:
        """The command inside; `nsenter` leaves /sys and /etc as they are."""
        return ["nsenter", f"--net={self.path}", "--", *argv]

    def pids(self) -> list[int]:
        """All processes inside but the one that holds it."""
        mine, found = self.path.stat(), []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == self._holder.pid:
                continue
            try:
                theirs = (entry / "ns/net").stat()
            except OSError:
                continue
            if (theirs.st_dev, theirs.st_ino) == (mine.st_dev, mine.st_ino):
                found.append(int(entry.name))
        return found

    def stop(self) -> None:
        """End every process inside, then the namespace."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self.pids():
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    continue
            deadline = time.monotonic() + _STOP_SECONDS
            while self.pids() and time.monotonic() < deadline:
                time.sleep(0.05)
        self._holder.kill()
        self._holder.wait(_STOP_SECONDS)

    def _wait(self) -> None:
        ours = Path("/proc/self/ns/net").stat().st_ino
        deadline = time.monotonic() + _STOP_SECONDS
        while self.path.stat().st_ino == ours:
            if time.monotonic() > deadline or self._holder.poll() is not None:
                raise RuntimeError("no network namespace could be made; are you root?")
            time.sleep(0.01)
