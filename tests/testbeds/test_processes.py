"""What a bed started ends with it."""

import subprocess
import time
from pathlib import Path

from tests.testbeds.processes import Processes, until

_DAEMON = "setsid sleep 300 >/dev/null 2>&1 & echo $! > {pid}; [ {stays} = yes ] && exec sleep 300"


def daemon(processes: Processes, folder: Path, stays: str) -> int:
    """Start what starts another one in a session of its own."""
    pid = folder / "pid"
    processes.start(["sh", "-c", _DAEMON.format(pid=pid, stays=stays)], name="parent")
    until(lambda: pid.exists() and pid.read_text().strip(), 10, "the daemon runs")
    return int(pid.read_text())


def runs(pid: int) -> bool:
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], check=False, capture_output=True, text=True, timeout=10
    )
    return state.stdout.strip()[:1] not in ("", "Z")


def test_daemon_that_left_its_session_ends_with_the_bed(tmp_path: Path) -> None:
    for stays in ("yes", "no"):
        with Processes(tmp_path / "log") as processes:
            pid = daemon(processes, tmp_path, stays)
            assert runs(pid)
        assert not runs(pid)
        (tmp_path / "pid").unlink()


def test_what_another_bed_started_goes_on(tmp_path: Path) -> None:
    with Processes(tmp_path / "log") as others:
        pid = daemon(others, tmp_path, "yes")
        with Processes(tmp_path / "log") as processes:
            processes.start(["sleep", "300"], name="sleep")
        time.sleep(0.2)
        assert runs(pid)
