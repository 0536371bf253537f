"""A production survives ten power cuts: nothing is lost, nothing is done twice."""

import asyncio
import json
import random
import sys
import threading
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from khomas.api.scheduler.v1.state_pb2 import JobState
from khomas.api.storage.v1.grant_pb2 import Upload
from khomas.api.storage.v1.storage_service_pb2 import BatchGetUploadsRequest
from khomas.client import AsyncClient, KhomasError
from khomas.client.connection import Connection
from tests.e2e.installation import Installation
from tests.e2e.watching import events

SEED = 20261121
JOBS = 200
KILLS = 10
LONGEST_LIFE = 1.2

# Long enough that the production outlives the kills.
PRODUCTION = {
    "name": "killed",
    "stages": [
        {
            "name": "copy",
            "data": {"dataset": "raw", "complete_when_drained": True},
            "job": {
                "run": ["sh", "-c", "sleep 0.1; cp {file} out_{file}"],
                "memory": "50MB",
                "wall": "1min",
                "outputs": [{"glob": "out_*", "name": "/hess/out/{file}", "dataset": "out", "min_bytes": 1}],
            },
        },
        {
            "name": "merge",
            "after": ["copy"],
            "data": {"group_by": "*"},
            "job": {
                "run": ["sh", "-c", "cat out_* > merged.txt"],
                "memory": "50MB",
                "wall": "1min",
                "outputs": [{"glob": "merged.txt", "name": "/hess/out/{file}"}],
            },
        },
    ],
}


@dataclass(slots=True)
class Watcher:
    """Watches one service in a thread of its own, and goes on after its last cursor when the service comes back."""

    khomas: Installation
    area: str
    uids: list[str] = field(default_factory=list)
    cursor: str = ""
    disconnects: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Watch until `finish`."""
        self._thread = threading.Thread(target=asyncio.run, args=(self._watch(),), daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Take what is still to come, and end."""
        self._stop.set()
        assert self._thread is not None
        self._thread.join(30)
        assert not self._thread.is_alive()
        asyncio.run(self._follow(until_now=True))

    async def _watch(self) -> None:
        while not self._stop.is_set():
            following = asyncio.create_task(self._follow(until_now=False))
            # The flag is set by another thread.
            while not following.done() and not self._stop.is_set():
                await asyncio.sleep(0.05)
            following.cancel()
            (ended,) = await asyncio.gather(following, return_exceptions=True)
            if isinstance(ended, KhomasError):
                self.disconnects += 1
                await asyncio.sleep(0.05)
            else:
                assert isinstance(ended, asyncio.CancelledError), ended

    async def _follow(self, *, until_now: bool) -> None:
        async for answer in events(self.khomas, self.area, self.cursor, until_now=until_now):
            self.uids += [event.uid for event in answer.events]
            self.cursor = answer.cursor


async def replay(khomas: Installation, area: str) -> list[str]:
    return [event.uid async for answer in events(khomas, area, "", until_now=True) for event in answer.events]


async def jobs_with_attempts(khomas: Installation) -> list[Any]:
    async with AsyncClient(khomas.environment["KHOMAS_ENDPOINT"], khomas.token) as client:
        names = [row["id"] for row in khomas.rows("ls", "--tag", "production=killed", "--limit", 0)]
        return await client.jobs.get_many(names, full=True)


def start_production(khomas: Installation, folder: Path) -> None:
    source = folder / "raw"
    source.mkdir()
    for number in range(JOBS):
        (source / f"in_{number:03}.txt").write_text(f"{number}\n" * 20)
    khomas.run("put", source, "/hess/raw", "--dataset", "raw")
    khomas.run("dataset", "close", "raw")
    document = folder / "killed.yaml"
    document.write_text(json.dumps(PRODUCTION))
    khomas.run("prod", "create", document)


def check_jobs(khomas: Installation) -> None:
    jobs = asyncio.run(jobs_with_attempts(khomas))
    assert len(jobs) == JOBS + 1
    for job in jobs:
        succeeded = [one for one in job.attempts if one.state == JobState.JOB_STATE_SUCCEEDED]
        assert job.status.state == JobState.JOB_STATE_SUCCEEDED, job.status
        assert len(succeeded) == 1, job.attempts


async def check_staging(khomas: Installation) -> None:
    """In the end, what lies in the staging folder is of attempts that were lost, never of a committed upload."""
    connection = Connection(khomas.environment["KHOMAS_ENDPOINT"], khomas.token)
    try:
        # What a kill has left after a commit is swept within a minute.
        async with asyncio.timeout(90):
            while any(one.state != Upload.STATE_OPEN for one in await staged(khomas, connection)):
                await asyncio.sleep(1)
    finally:
        await connection.close()


async def staged(khomas: Installation, connection: Connection) -> list[Upload]:
    names = [f"uploads/{path.name}" for path in (khomas.state / "services/storage/local/.khomas/uploads").iterdir()]
    if not names:
        return []
    answer = await connection.call("storage", "BatchGetUploads", BatchGetUploadsRequest(names=names))
    assert len(answer.uploads) == len(names)
    return list(answer.uploads)


def check_files(khomas: Installation, folder: Path) -> None:
    """Compare the catalogue with the bytes, both ways."""
    top = khomas.state / "services/storage/local"
    rows = khomas.rows("find", "/hess")
    assert len([row for row in rows if row["name"].startswith("/hess/out/")]) == JOBS + 1
    for row in rows:
        (path,) = row["paths"]
        content = (top / path.removeprefix("local:")).read_bytes()
        assert (row["size"], row["adler32"]) == (len(content), f"{zlib.adler32(content):08x}"), row["name"]
        assert row["replicas"] == ["local"]
    files = [path.relative_to(top) for path in top.rglob("*") if path.is_file()]
    on_disk = {str(path) for path in files if path.parts[0] != ".khomas"}
    assert on_disk == {row["paths"][0].removeprefix("local:") for row in rows}
    merged = (top / "hess/out/merged.txt").read_bytes()
    assert merged == b"".join(path.read_bytes() for path in sorted((folder / "raw").iterdir()))


# 55 s where nothing else runs.
@pytest.mark.timeout(700)
def test_a_production_survives_ten_kills_without_loss_or_repetition(own_khomas: Installation, tmp_path: Path) -> None:
    # A failure shows when to kill again.
    sys.stderr.write(f"seed {SEED}\n")
    moments = random.Random(SEED)
    watchers = [Watcher(own_khomas, "scheduler"), Watcher(own_khomas, "catalog")]
    for watcher in watchers:
        watcher.start()
    start_production(own_khomas, tmp_path)
    for number in range(KILLS):
        time.sleep(moments.uniform(0, LONGEST_LIFE))
        own_khomas.kill()
        merged = own_khomas.state / "services/storage/local/hess/out/merged.txt"
        assert not merged.exists(), f"the production was over before kill {number + 1}"
        own_khomas.start()
    own_khomas.run("prod", "wait", "killed", "--timeout", "400s")
    (production,) = own_khomas.rows("prod", "show", "killed")
    assert production["state"] == "STATE_COMPLETED"
    check_jobs(own_khomas)
    check_files(own_khomas, tmp_path)
    asyncio.run(check_staging(own_khomas))
    for watcher in watchers:
        watcher.finish()
        assert watcher.disconnects >= KILLS
        assert len(set(watcher.uids)) == len(watcher.uids)
        assert watcher.uids == asyncio.run(replay(own_khomas, watcher.area))
