"""The scheduler is killed while it hands jobs over to a real system: every job was submitted once."""

import json
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import killing
from tests.e2e.installation import PATIENCE, Installation
from tests.e2e.killing import Moment
from tests.testbeds.systems import NAMES, System, Systems

# Handed over before each cut, and after the last one.
PART = 6
JOBS = PART * (len(Moment) + 1)
# ARC takes seconds of a core for each job.
SECONDS = 240


@pytest.fixture
def marks() -> Iterator[Path]:
    """A file that jobs of every user append to, in every chroot."""
    with tempfile.TemporaryDirectory(prefix="khomas-marks-") as folder:
        Path(folder).chmod(0o755)
        marks = Path(folder) / "ran"
        marks.touch()
        marks.chmod(0o666)
        yield marks


@pytest.fixture
def khomas(tmp_path: Path) -> Iterator[Installation]:
    installation = Installation(tmp_path)
    yield installation
    installation.stop()


@pytest.mark.timeout(2 * SECONDS)
@pytest.mark.parametrize("name", NAMES)
def test_every_job_is_handed_over_once_whenever_the_scheduler_is_killed(
    systems: Systems, khomas: Installation, marks: Path, name: str
) -> None:
    system = systems[name]
    before = system.taken() if system.taken else 0
    array = submit(khomas, system, name, marks)
    for number, moment in enumerate(Moment, 1):
        khomas.settings = settings(khomas, system, name, room=PART * number, moment=moment)
        khomas.launch()
        assert khomas.process is not None
        assert khomas.process.wait(PATIENCE) == -signal.SIGKILL, log_of(khomas)
    khomas.settings = settings(khomas, system, name, room=JOBS)
    khomas.start()
    jobs = ended(khomas, array)
    assert {(job["state"], job["attempt"]) for job in jobs} == {("SUCCEEDED", 1)}
    assert sorted(map(int, marks.read_text().split())) == list(range(JOBS))
    if system.taken is not None:
        assert told(system, before + JOBS) - before == JOBS


def submit(khomas: Installation, system: System, name: str, marks: Path) -> str:
    """Have the jobs accepted by a service that works on none."""
    khomas.settings = settings(khomas, system, name, room=JOBS) | {"KHOMAS_SCHEDULER_ENGINE": "false"}
    khomas.start()
    command = ["sh", "-c", f"echo {{index}} >> {marks}"]
    (array,) = khomas.rows("submit", "--on", name, "--count", JOBS, "--wall", "5min", "--", *command)
    khomas.stop()
    return str(array["id"])


def settings(
    khomas: Installation, system: System, name: str, *, room: int, moment: Moment | None = None
) -> dict[str, str]:
    """A scheduler with room for so many jobs that have not ended, killed at this moment."""
    options: Mapping[str, Any] = system.options
    if system.kind == "local":
        options = {**options, "spool": str(khomas.state / "spool")}
    if system.kind in ("slurm", "htcondor"):
        options = {**options, "pilots": 0}  # which would take several jobs
    backend = {**system.settings, "options": dict(options), "max_jobs": room}
    if moment is not None:
        backend |= {"kind": killing.KIND, "options": {"kind": system.kind, "options": options, "moment": moment}}
    return {
        "KHOMAS_SCHEDULER_BACKENDS": json.dumps({name: backend}),
        "KHOMAS_SCHEDULER_FIND_PAUSE": "PT0.5S",
        # What a system has of them is counted at the end.
        "KHOMAS_SCHEDULER_COLLECT_AFTER": "PT1H",
        **killing.entry_point(khomas.state / "plugins"),
    }


def ended(khomas: Installation, array: str) -> list[dict[str, Any]]:
    """Wait until all jobs of an array have ended."""
    deadline = time.monotonic() + SECONDS
    while True:
        jobs = khomas.rows("ls", array, "--limit", 0)
        open_ones = [job for job in jobs if job["state"] not in ("SUCCEEDED", "FAILED", "CANCELLED")]
        if not open_ones:
            return jobs
        assert time.monotonic() < deadline, (open_ones[:2], log_of(khomas))
        time.sleep(0.3)


def told(system: System, wanted: int) -> int:
    """How many jobs the system ever took; its books may come late."""
    assert system.taken is not None
    deadline = time.monotonic() + 30
    while (taken := system.taken()) < wanted and time.monotonic() < deadline:
        time.sleep(0.3)
    return taken


def log_of(khomas: Installation) -> str:
    return (khomas.state / "services.log").read_text()[-3000:]
