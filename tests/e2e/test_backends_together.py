"""All systems behind one service: their servers go away and come back, and jobs misbehave on each of them."""

import asyncio
import json
import os
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from khomas.api.scheduler.v1.job_pb2 import Job
from khomas.api.scheduler.v1.state_pb2 import JobState, Reason
from khomas.client import AsyncClient
from khomas.client.specs import Sandboxes, job_spec
from tests.e2e.installation import Installation
from tests.e2e.watching import events
from tests.testbeds.systems import NAMES, Systems

# How long servers are away. By hand: a minute.
AWAY = float(os.environ.get("KHOMAS_TEST_AWAY_SECONDS", "12"))
# Who was not seen for so long is called stalled.
SILENCE = 5 * AWAY
JOBS = 4
# ARC takes seconds of a core for each job, the others share the machine with it.
SECONDS = 300

GIB, MIB = 1 << 30, 1 << 20
_HELD = "x = bytearray(200 << 20)\nfor at in range(0, len(x), 4096): x[at] = 1\nimport time\ntime.sleep(60)"
# Jobs that do not behave, and how each ends.
NAUGHTY: Mapping[str, tuple[dict[str, Any], str]] = {
    "ignores SIGTERM": ({"run": "trap '' TERM; while :; do sleep 1; done", "wall": "2s"}, "LIMIT_WALL"),
    "sleeps beyond its wall time": ({"run": "sleep 600", "wall": "2s"}, "LIMIT_WALL"),
    "goes on in the background": ({"run": "setsid sleep 600 & nohup sleep 600 >/dev/null 2>&1 &"}, ""),
    "fills its disk": ({"run": f"head -c {10 * GIB} /dev/zero > big; sleep 60", "disk": "50MB"}, "LIMIT_DISK"),
    "prints 10 GB": ({"run": "head -c 10000000000 /dev/zero", "max_log": "5MB"}, "LIMIT_LOG_SIZE"),
    "uses twice its memory": ({"run": f'python3 -S -c "{_HELD}"', "memory": "100MB"}, "LIMIT_MEMORY"),
}


@pytest.fixture(scope="module")
def khomas(systems: Systems, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """One service with all systems."""
    settings = {
        "KHOMAS_SCHEDULER_BACKENDS": json.dumps({name: systems[name].settings for name in NAMES}),
        "KHOMAS_SCHEDULER_HEARTBEAT_TIMEOUT": f"PT{SILENCE:.0f}S",
        # Much shorter than they are away.
        "KHOMAS_SCHEDULER_LOST_AFTER": f"PT{AWAY / 4:.0f}S",
    }
    installation = Installation(tmp_path_factory.mktemp("together"), settings=settings)
    installation.start()
    yield installation
    installation.stop()


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder that jobs of every user write to, in every chroot."""
    with tempfile.TemporaryDirectory(prefix="khomas-together-") as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


# ------------------------------------------------------------------------------------------------ servers that are away


@pytest.fixture(scope="module")
def survivors(khomas: Installation, systems: Systems, folder: Path) -> dict[str, list[Job]]:
    """Jobs that ran while all servers were away, some of them to their end, by the system."""
    script = f"echo on > {folder}/{{name}}-$0; until [ -e {folder}/go-$(($0 % 2)) ]; do sleep 0.3; done"
    documents = [
        {"run": ["sh", "-c", script.format(name=name), str(number)], "wall": "10min", "on": name}
        for name in NAMES
        for number in range(JOBS)
    ]
    names = asyncio.run(submitted(khomas, documents))
    wait_until(lambda: len(list(folder.glob("*-*"))) == len(documents), "all jobs run")
    servers = {systems[name].server: systems[name] for name in NAMES if systems[name].server}
    for system in servers.values():
        system.stop()
    time.sleep(AWAY / 2)
    (folder / "go-0").touch()
    time.sleep(AWAY / 2)
    for system in servers.values():
        system.start()
    (folder / "go-1").touch()
    return by_system(asyncio.run(final(khomas, names)))


@pytest.mark.timeout(4 * SECONDS)
@pytest.mark.parametrize("name", NAMES)
def test_jobs_go_on_while_the_server_is_away_and_none_is_called_lost(
    khomas: Installation, survivors: dict[str, list[Job]], name: str
) -> None:
    jobs = survivors[name]
    assert [job.status.state for job in jobs] == [JobState.JOB_STATE_SUCCEEDED] * JOBS, jobs
    assert [job.status.attempt for job in jobs] == [1] * JOBS
    seen = asyncio.run(states(khomas, {job.name for job in jobs}))
    assert JobState.JOB_STATE_STALLED not in seen


# -------------------------------------------------------------------------------------------------- jobs that misbehave


@pytest.fixture(scope="module")
def mark() -> str:
    """What is in the environment of every process of these jobs, and the name of their files."""
    return f"khomas-mark-{uuid.uuid4().hex}"


@pytest.fixture(scope="module")
def naughty(khomas: Installation, survivors: dict[str, list[Job]], mark: str) -> dict[str, list[Job]]:
    """One submission with all of them for all systems."""
    documents = []
    for name in NAMES:
        for what, (keys, _) in NAUGHTY.items():
            script = f'touch {mark}; mkdir "$(mktemp -d)/{mark}"; {keys["run"]}'
            run = {"run": ["sh", "-c", script], "name": what, "on": name, "env": {"KHOMAS_MARK": mark}}
            documents.append({"wall": "10min", "kill_grace": "1s", **keys, **run})
    return by_system(asyncio.run(final(khomas, asyncio.run(submitted(khomas, documents)))))


@pytest.mark.timeout(4 * SECONDS)
@pytest.mark.parametrize("name", NAMES)
def test_job_that_misbehaves_ends_with_the_right_reason(naughty: dict[str, list[Job]], name: str) -> None:
    told = {job.spec.display_name: Reason.Name(job.status.reason).removeprefix("REASON_") for job in naughty[name]}
    assert told == {what: reason or "UNSPECIFIED" for what, (_, reason) in NAUGHTY.items()}
    assert [attempt for job in naughty[name] for attempt in job.attempts[:-1]] == []


@pytest.mark.timeout(4 * SECONDS)
def test_nodes_are_left_clean(naughty: dict[str, list[Job]], mark: str) -> None:
    assert naughty
    assert [path for path in Path("/proc").glob("[0-9]*/environ") if mark in environment(path)] == []
    for top in (tempfile.gettempdir(), "/var/tmp", "/dev/shm"):
        assert [folder for folder, folders, files in os.walk(top) if mark in folders or mark in files] == []


def environment(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""  # it has ended


# ------------------------------------------------------------------------------------------------------------- the wire


async def submitted(khomas: Installation, documents: Sequence[Mapping[str, Any]]) -> list[str]:
    """Submit all with one call; their names."""
    specs = [job_spec(one, Sandboxes(Path())) for one in documents]
    async with AsyncClient(khomas.environment["KHOMAS_ENDPOINT"], khomas.token) as client:
        return [job.name for job in (await client.jobs.submit(specs)).jobs]


async def final(khomas: Installation, names: Sequence[str]) -> list[Job]:
    """Wait for their ends."""
    async with AsyncClient(khomas.environment["KHOMAS_ENDPOINT"], khomas.token) as client:
        await client.jobs.wait(names, timeout=SECONDS)
        return await client.jobs.get_many(names, full=True)


async def states(khomas: Installation, names: set[str]) -> set[int]:
    """All states that these jobs were ever in."""
    found: set[int] = set()
    async for answer in events(khomas, "scheduler", "", until_now=True):
        for event in answer.events:
            job = Job()
            if event.resource.Unpack(job) and job.name in names:
                found.add(job.status.state)
    return found


def by_system(jobs: Sequence[Job]) -> dict[str, list[Job]]:
    return {name: [job for job in jobs if list(job.spec.placement.backends) == [name]] for name in NAMES}


def wait_until(check: Any, what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not check():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.2)
