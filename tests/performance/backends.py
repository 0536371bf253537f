"""What it costs to hand jobs over to Slurm, to look at them and to cancel them, against its own commands."""

import asyncio
import os
import tempfile
import time
from pathlib import Path

from khomas.scheduler.backends.interface import Submitted
from khomas.scheduler.backends.slurm import SlurmSettings, open_slurm
from khomas.scheduler.backends.spool.backend import SpooledBackend
from khomas.scheduler.conformance import GRACE, job
from tests.performance.figures import Figure
from tests.testbeds import slurm
from tests.testbeds.slurm import Slurm

_NUMBERS = (100, 1000, 10_000)


async def measure(rounds: int) -> list[Figure]:
    """Measure on a cluster whose partition is down, so that nothing runs meanwhile."""
    with tempfile.TemporaryDirectory(prefix="khomas-bench-") as folder:
        os.chmod(folder, 0o755)  # noqa: PTH101, S103  jobs of other users enter it
        with slurm.running(Path(folder) / "bed", database=False) as bed:
            bed.command("scontrol", "update", "PartitionName=batch", "State=DOWN")
            settings = SlurmSettings(
                spool=Path(folder) / "spool", env=bed.environment, accounting=False, max_array=10_000, max_batch=10_000
            )
            figures = []
            for number in _NUMBERS:
                figures += await _at(open_slurm(settings), bed, number, rounds)
            return figures


async def _at(backend: SpooledBackend, bed: Slurm, number: int, rounds: int) -> list[Figure]:
    handover: list[float] = []
    per_job: list[float] = []
    looking: list[float] = []
    ending: list[float] = []
    for _ in range(rounds):
        items = [job("true") for _ in range(number)]
        began = time.perf_counter()
        outcomes = await backend.submit(items)
        ours = time.perf_counter() - began
        assert {outcome.kind for outcome in outcomes} == {Submitted.ACCEPTED}
        bare = await _timed(bed, "sbatch", "--parsable", f"--array=0-{number - 1}", "--output=/dev/null", "--wrap=true")
        handover.append(ours / bare)
        per_job.append(ours / number * 1e6)
        ids = [outcome.native_id for outcome in outcomes]
        began = time.perf_counter()
        await backend.poll(ids)
        ours = time.perf_counter() - began
        looking.append(ours / await _timed(bed, "squeue", "-h", "-r", "-t", "all", "-o", "%F|%K|%T|%N|%P|%S|%e|%r"))
        began = time.perf_counter()
        await backend.cancel(ids, GRACE)
        ending.append((time.perf_counter() - began) / number * 1e6)
        await backend.purge(ids)
        await _timed(bed, "scancel", "--state=PENDING", "-p", "batch")
    return [
        Figure(f"Slurm: hand over {number:,}, of a bare array", "x", handover, "<= 1.5" if number >= 10_000 else ""),
        Figure(f"Slurm: hand over {number:,}, each", "us", per_job),
        Figure(f"Slurm: look at {number:,}, of a bare squeue", "x", looking),
        Figure(f"Slurm: cancel {number:,}, each", "us", ending),
    ]


async def _timed(bed: Slurm, *argv: str) -> float:
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *argv, env={**os.environ, **bed.environment}, stdout=asyncio.subprocess.DEVNULL
    )
    assert await process.wait() == 0
    return time.perf_counter() - began
