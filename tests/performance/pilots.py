"""Pilots on a real Slurm of 16 slots: short jobs through them against one sbatch a job, and how many they run."""

import asyncio
import contextlib
import os
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from khomas.scheduler.backends.interface import State, SubmitItem
from khomas.scheduler.backends.slurm import SlurmSettings, open_slurm
from khomas.scheduler.backends.spool.backend import SpooledBackend
from khomas.scheduler.conformance import job
from tests.performance.figures import Figure
from tests.testbeds import slurm as bed
from tests.testbeds.slurm import Slurm

_LIMITS = {"cpu_milli": 1000, "wall_time_s": 60.0}
_FEW, _FEW_ROUNDS = 4, 5


async def measure(rounds: int, jobs: int = 1000) -> list[Figure]:
    """Measure both ways on one Slurm, one after the other in every round."""
    with tempfile.TemporaryDirectory(prefix="khomas-pilots-") as name:
        folder = Path(name)
        (folder / "slurm").mkdir(mode=0o755)
        with bed.running(folder / "slurm", database=False) as slurm:
            settings = SlurmSettings(
                spool=folder / "spool", env=slurm.environment, poll_seconds=1.0, accounting=False, pilots=4
            )
            backend, plain = open_slurm(settings), open_slurm(replace(settings, pilots=0))
            try:
                return [*await _measured(backend, slurm, rounds, jobs), await _few(backend, plain, slurm)]
            finally:
                await backend.aclose()
                await plain.aclose()


async def _measured(backend: SpooledBackend, slurm: Slurm, rounds: int, jobs: int) -> list[Figure]:
    ratios, seconds, rates = [], [], []
    for _ in range(rounds):
        # No pilot waits for the first jobs: they are started within the time that is measured.
        ours = await _ended(backend, jobs, "sleep", "1")
        rates.append(jobs / await _ended(backend, jobs, "true"))
        await _without_pilots(slurm)
        ratios.append(ours / await asyncio.to_thread(_one_by_one, slurm, jobs))
        seconds.append(ours)
    return [
        Figure(f"{jobs} one-second jobs by pilots / by sbatch", "x", ratios, "<= 0.5"),
        Figure(f"{jobs} one-second jobs by pilots on 16 slots", "s", seconds),
        Figure(f"{jobs} `true` by pilots", "jobs/s", rates),
    ]


async def _few(backend: SpooledBackend, plain: SpooledBackend, slurm: Slurm) -> Figure:
    """As few jobs as make a pilot, which has to start for them, against those that go by themselves."""
    ratios = []
    for _ in range(_FEW_ROUNDS):
        await _without_pilots(slurm)
        ours = await _ended(backend, _FEW, "true", pause=0.1)
        await _without_pilots(slurm)
        ratios.append(ours / await _ended(plain, _FEW, "true", pause=0.1))
    return Figure(f"{_FEW} `true` by a pilot of their own / by themselves", "x", ratios)


async def _ended(backend: SpooledBackend, jobs: int, *command: str, pause: float = 0.5) -> float:
    """Seconds until the last of them is seen to have ended."""
    items: list[SubmitItem] = [job(*command, resources=_LIMITS) for _ in range(jobs)]
    began = time.perf_counter()
    waiting = {outcome.native_id for outcome in await backend.submit(items)}
    while waiting:
        await asyncio.sleep(pause)
        seen = (await backend.poll(sorted(waiting))).observations
        assert not any(one.state in (State.FAILED, State.CANCELLED) for one in seen)
        waiting -= {one.native_id for one in seen if one.state is State.SUCCEEDED}
    return time.perf_counter() - began


async def _without_pilots(slurm: Slurm) -> None:
    """End the pilots, so that all slots are free for the others."""
    while slurm.command("squeue", "-h"):
        with contextlib.suppress(subprocess.CalledProcessError):  # those that ended meanwhile
            slurm.command("scancel", "--signal=TERM", "--batch", "--state=RUNNING", "-p", "batch")
        await asyncio.sleep(0.5)


def _one_by_one(slurm: Slurm, jobs: int) -> float:
    """The same with one sbatch a job, until the queue is empty."""
    env = {**os.environ, **slurm.environment}
    sbatch = ["sbatch", "--parsable", "--output=/dev/null", "--ntasks=1", "--time=1", "--chdir=/", "--wrap=sleep 1"]
    began = time.perf_counter()
    for _ in range(jobs):
        subprocess.run(sbatch, check=True, env=env, stdout=subprocess.DEVNULL, timeout=60)
    while slurm.command("squeue", "-h", "-t", "PENDING,CONFIGURING,RUNNING,COMPLETING"):
        time.sleep(0.5)
    return time.perf_counter() - began
