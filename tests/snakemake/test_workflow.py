"""Snakemake as it is, on a real Slurm, through a running installation."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.backends.conftest import shared_folder
from tests.e2e.installation import BIN, Installation
from tests.testbeds import slurm as slurm_bed
from tests.testbeds.slurm import Slurm

_WORKFLOW = Path(__file__).with_name("workflow.smk")
_SLEEPERS = """
rule all:
    input: expand("{n}.txt", n=range(4))

rule sleeper:
    output: "{n}.txt"
    resources: mem_mb=1000, disk_mb=100, runtime=60
    shell: "touch started.{wildcards.n}; sleep 3000; touch {output}"
"""
_LONE = """
rule lone:
    output: "lone.txt"
    resources: mem_mb=1000, disk_mb=100, runtime=10
    shell: "touch started; sleep 5; touch {output}"
"""
_REFUSED = """
rule all:
    input: "fine.txt", "odd.txt"

rule fine:
    output: "fine.txt"
    resources: mem_mb=1000, disk_mb=100, runtime=10
    shell: "touch {output}"

rule odd:
    output: "odd.txt"
    resources: mem_mb=1000, disk_mb=100, runtime=10, khomas_native="slurm.favourite_colour=blue"
    shell: "touch {output}"
"""


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    with slurm_bed.running(shared_folder("snakemake-slurm"), database=False) as running:
        yield running


@pytest.fixture(scope="module")
def khomas(slurm: Slurm) -> Iterator[Installation]:
    folder = shared_folder("snakemake")
    options = {"spool": str(folder / "spool"), "env": dict(slurm.environment), "accounting": False, "poll_seconds": 1}
    backends = {"slurm": {"kind": "slurm", "options": options}}
    installation = Installation(folder, settings={"KHOMAS_SCHEDULER_BACKENDS": json.dumps(backends)})
    installation.start()
    yield installation
    installation.stop()


@pytest.fixture
def folder() -> Path:
    """A folder that the nodes see too."""
    return shared_folder("workflow")


def start(khomas: Installation, folder: Path, *options: str, backend: str = "slurm") -> subprocess.Popen[str]:
    # HOME: Snakemake keeps copies of sources there.
    env = khomas.environment | {"HOME": str(folder)}
    quick = ["--seconds-between-status-checks", "1", "--latency-wait", "60"]
    command = [
        str(BIN / "snakemake"),
        "--executor",
        "khomas",
        "--khomas-backend",
        backend,
        "--jobs",
        "100",
        *quick,
        *options,
    ]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def jobs_of(khomas: Installation, printed: str) -> list[dict[str, Any]]:
    """The jobs of a run, whose tag it printed."""
    [line] = [line for line in printed.splitlines() if "snakemake_workflow=" in line]
    return khomas.rows("ls", "--tag", line.split()[-1])


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.timeout(900)
def test_workflow_of_fifty_jobs_runs_through_slurm_and_one_is_tried_again(
    khomas: Installation, slurm: Slurm, folder: Path
) -> None:
    shutil.copy(_WORKFLOW, folder / "Snakefile")
    running = start(khomas, folder)
    printed, _ = running.communicate(timeout=800)
    assert running.returncode == 0, printed
    assert (folder / "sum.txt").read_text() == f"{sum(range(48)) + 1000}\n"

    jobs = jobs_of(khomas, printed)
    ended = sorted((job["state"], job["reason"]) for job in jobs)
    assert ended == [("FAILED", "APP_EXIT_CODE")] + 50 * [("SUCCEEDED", "")]
    assert {job["backend"] for job in jobs} == {"slurm"}
    # Those that were ready together went in one call.
    assert len({job["created"] for job in jobs}) == 3

    [fickle] = [job for job in jobs if job["state"] == "FAILED"]
    assert f"Khomas job {fickle['id']} FAILED (APP_EXIT_CODE)" in printed
    assert "not this time" in printed
    # Snakemake itself tried again: its `attempt` made the limit grow.
    tries = [khomas.run("export", job["id"]) for job in jobs if job["name"] == fickle["name"]]
    assert sorted(re.findall(r"^wall: (.*)$", "".join(tries), re.MULTILINE)) == ["1200s", "600s"]


@pytest.mark.timeout(300)
def test_interrupted_workflow_leaves_no_job_behind(khomas: Installation, slurm: Slurm, folder: Path) -> None:
    (folder / "Snakefile").write_text(_SLEEPERS)
    running = start(khomas, folder)
    until(lambda: len(list(folder.glob("started.*"))) == 4)
    os.kill(running.pid, signal.SIGINT)
    printed, _ = running.communicate(timeout=120)
    assert running.returncode != 0

    until(lambda: {job["state"] for job in jobs_of(khomas, printed)} == {"CANCELLED"})
    assert len(jobs_of(khomas, printed)) == 4
    until(lambda: slurm.command("squeue", "-h") == "")


@pytest.mark.timeout(300)
def test_job_that_is_refused_is_told_and_the_others_run(khomas: Installation, folder: Path) -> None:
    (folder / "Snakefile").write_text(_REFUSED)
    running = start(khomas, folder, "--keep-going")
    printed, _ = running.communicate(timeout=250)
    assert running.returncode != 0
    assert "Khomas did not take it" in printed
    assert "favourite_colour" in printed
    assert (folder / "fine.txt").exists()
    assert [job["state"] for job in jobs_of(khomas, printed)] == ["SUCCEEDED"]


@pytest.mark.timeout(300)
def test_job_that_is_no_longer_kept_is_no_success(folder: Path) -> None:
    (folder / "Snakefile").write_text(_LONE)
    soon = {"RETAIN": "PT0.1S", "RETENTION_PAUSE": "PT0.5S", "COLLECT_AFTER": "PT0.1S"}
    forgetful = Installation(folder / "state", settings={f"KHOMAS_SCHEDULER_{key}": soon[key] for key in soon})
    forgetful.state.mkdir()
    forgetful.start()
    try:
        running = start(forgetful, folder, backend="local")
        until((folder / "started").exists)
        os.kill(running.pid, signal.SIGSTOP)
        until(lambda: forgetful.rows("ls") == [])
        os.kill(running.pid, signal.SIGCONT)
        printed, _ = running.communicate(timeout=250)
    finally:
        forgetful.stop()
    assert running.returncode != 0
    assert "Khomas no longer keeps this job" in printed, printed
