"""What `khomas job commands` shows of a real batch system."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.backends.conftest import shared_folder
from tests.e2e.installation import Installation
from tests.testbeds.slurm import Slurm


@pytest.fixture
def khomas(tmp_path: Path, slurm: Slurm) -> Iterator[Installation]:
    """An installation over Slurm."""
    spool = str(shared_folder("commands") / "spool")
    options = {"spool": spool, "env": slurm.environment, "poll_seconds": 0.2}
    backends = json.dumps({"farm": {"kind": "slurm", "options": options}})
    installation = Installation(tmp_path, settings={"KHOMAS_SCHEDULER_BACKENDS": backends})
    installation.start()
    yield installation
    installation.stop()


def submissions(khomas: Installation, job: str) -> list[dict[str, Any]]:
    """What the batch system was asked to take; it is written a moment after the job knows the answer."""
    deadline = time.monotonic() + 30
    while not (found := [one for one in khomas.rows("job", "commands", job) if one["operation"] == "submit"]):
        assert time.monotonic() < deadline, "no submission was written"
        time.sleep(0.2)
    return found


@pytest.mark.timeout(300)
def test_commands_of_a_job_tell_how_slurm_was_asked_and_what_it_refused(khomas: Installation) -> None:
    job = khomas.submit("--name", "hello", "--", "echo", "hello")
    [submission] = submissions(khomas, job)
    assert (submission["argv"][0], submission["exit_code"], submission["backend"]) == ("sbatch", 0, "farm")
    table = khomas.run("job", "commands", job, "--attempt", 1)
    assert table.splitlines()[0].split() == [
        "time", "operation", "backend", "attempt", "command", "exit_code", "seconds", "stderr",
    ]  # fmt: skip
    assert " submit " in table
    assert khomas.run("job", "commands", job, "--attempt", 2).count("\n") == 1

    document = khomas.state / "refused.json"
    native = {"slurm": {"partition": "nobody-has-this"}}
    document.write_text(json.dumps({"run": ["true"], "native": native, "retry": {"max_attempts": 1}}))
    refused = khomas.submit(document, code=1)
    [no] = [one for one in submissions(khomas, refused) if one["failed"]]
    assert no["exit_code"] != 0
    assert "partition" in no["stderr"].lower()
    assert "partition" in khomas.run("job", "commands", refused).lower()
