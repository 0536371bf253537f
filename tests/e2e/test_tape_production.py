"""A production whose files are on tape: few requests for all of them, jobs that start as files arrive."""

import asyncio
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from zlib_ng.zlib_ng import adler32

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.catalog.v1 import file_pb2
from khomas.client import AsyncClient
from tests.e2e.installation import Installation
from tests.testbeds import tape as tape_bed
from tests.testbeds.processes import until
from tests.testbeds.tape import Tape

# By hand: 1000.
JOBS = int(os.environ.get("KHOMAS_TEST_TAPE_JOBS", "120"))
PATIENCE = 120 + JOBS
CONTENT = b"0123456789"
WAITS = "WAIT_STAGE_FROM_TAPE"
SETTINGS = {
    "KHOMAS_STORAGE_RECALL_POLL": "PT0.5S",
    "KHOMAS_STORAGE_RECALL_PAUSE": "PT0.5S",
    "KHOMAS_STORAGE_POLL": "PT0.2S",
}
PRODUCTION = {
    "name": "taped",
    "stages": [
        {
            "name": "sum",
            "data": {"dataset": "raw", "complete_when_drained": True},
            "job": {
                "run": ["sh", "-c", "wc -c < {file} > {file}.sum"],
                "memory": "50MB",
                "wall": "1min",
                "outputs": [{"glob": "*.sum", "name": "/hess/sums/{file}", "dataset": "sums"}],
            },
        }
    ],
}


@pytest.fixture(scope="module")
def tape() -> Iterator[Tape]:
    with tempfile.TemporaryDirectory(prefix="khomas-tape-") as folder, tape_bed.running(Path(folder)) as running:
        yield running


@pytest.fixture
def khomas(tmp_path: Path, tape: Tape) -> Iterator[Installation]:
    installation = Installation(tmp_path, settings=SETTINGS)
    installation.start()
    option = ("--protocol", "root", "--option", "tape=true", "--option", "seconds=30", "--media", "tape")
    installation.run("se", "create", "hpss", tape.address, *option)
    yield installation
    installation.stop()


@pytest.mark.timeout(4 * PATIENCE)
def test_jobs_of_a_production_wait_for_one_request_and_start_as_files_arrive(
    khomas: Installation, tape: Tape, tmp_path: Path
) -> None:
    asyncio.run(keep(khomas, tape))
    document = tmp_path / "production.json"
    document.write_text(json.dumps(PRODUCTION))
    khomas.run("prod", "create", document)

    until(lambda: reasons(khomas) == {WAITS: JOBS}, PATIENCE, "all jobs wait for tape")
    until(lambda: sum(tape.requests()) == JOBS, PATIENCE, "all files are asked for")
    # A request is about at most a thousand files; those that the first jobs need may be asked for before all others.
    assert len(tape.requests()) <= 3 + JOBS // 1000
    until(lambda: sum("in its queue" in told for told in messages(khomas)) == JOBS, PATIENCE, "all have their places")
    [example] = [told for told in messages(khomas) if re.search(r"place 1 in its queue", told)]
    assert "1 of 1 inputs are on tape at hpss; stage request" in example

    part = JOBS // 3
    tape.deliver(part)
    until(lambda: succeeded(khomas) == part, PATIENCE, "jobs start as files arrive")
    assert reasons(khomas) == {WAITS: JOBS - part}

    # A front end that is away stops nothing for good.
    tape.server.stop()
    try:
        time.sleep(3)
        assert reasons(khomas) == {WAITS: JOBS - part}
    finally:
        tape.server.start()
    tape.deliver(JOBS - part)
    khomas.run("prod", "wait", "taped", "--timeout", f"{PATIENCE}s")
    assert succeeded(khomas) == JOBS
    assert sum(tape.requests()) == JOBS


async def keep(khomas: Installation, tape: Tape) -> None:
    """Have files on tape, and in a dataset."""
    create = catalog_pb.BatchCreateFilesRequest(datasets=["datasets/raw"], request_id=str(uuid4()))
    for number in range(JOBS):
        tape.keep(f"raw/run_{number:04}", CONTENT)
        file = file_pb2.File(name=f"/raw/run_{number:04}", size_bytes=len(CONTENT))
        file.checksums.adler32 = f"{adler32(CONTENT):08x}"
        file.replicas.add(storage_element="hpss", path=file.name[1:], state=file_pb2.Replica.STATE_AVAILABLE)
        create.files.append(file)
    async with AsyncClient(khomas.environment["KHOMAS_ENDPOINT"], khomas.token) as client:
        await client.connection.call("catalog", "BatchCreateFiles", create)
        close = catalog_pb.CloseDatasetRequest(name="datasets/raw", request_id=str(uuid4()))
        await client.connection.call("catalog", "CloseDataset", close)


def waiting(khomas: Installation) -> list[dict[str, Any]]:
    return khomas.rows("ls", "--state", "pending", "--limit", 0, "-o", "id,reason,message")


def reasons(khomas: Installation) -> dict[str, int]:
    found: dict[str, int] = {}
    for job in waiting(khomas):
        found[job["reason"]] = found.get(job["reason"], 0) + 1
    return found


def messages(khomas: Installation) -> list[str]:
    return [job["message"] for job in waiting(khomas)]


def succeeded(khomas: Installation) -> int:
    return len(khomas.run("ls", "--state", "succeeded", "--limit", 0, "-q").split())
