"""What it costs to hand jobs over to batch systems, to look at them and to cancel them, against their own commands."""

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.json_format import ParseDict
from sqlalchemy import func, select

from khomas.api.scheduler.v1.job_spec_pb2 import JobSpec
from khomas.kit.testing import serve
from khomas.scheduler import tables
from khomas.scheduler.app import service
from khomas.scheduler.backends.at import AtSettings, open_at
from khomas.scheduler.backends.commands import recording
from khomas.scheduler.backends.grid_engine import GridEngineSettings, open_grid_engine
from khomas.scheduler.backends.htcondor import HtcondorSettings, open_htcondor
from khomas.scheduler.backends.interface import Backend, Submitted
from khomas.scheduler.backends.local import LocalSettings, open_local
from khomas.scheduler.backends.slurm import SlurmSettings, open_slurm
from khomas.scheduler.backends.slurm_rest import SlurmRestSettings, open_slurm_rest
from khomas.scheduler.conformance import GRACE, job
from khomas.scheduler.testing import Scheduler
from tests.performance.figures import Figure
from tests.testbeds import at, grid_engine, htcondor, slurm
from tests.testbeds.slurm import Slurm

_SQUEUE = ("squeue", "-h", "-r", "-t", "all", "-o", "%F|%K|%T|%N|%P|%S|%e|%r")
# The goal is for so many.
_HANDOVER_GOAL = 10_000
# With one command, on a machine that is busy.
_PATIENCE = 300.0


@dataclass(frozen=True, slots=True)
class _Bare:
    """What people would type; `@LAST@` is the index of the last job."""

    submit: Sequence[str]
    look: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)

    async def seconds(self, argv: Sequence[str], jobs: int = 1) -> float:
        """Run one of the commands."""
        began = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            *[word.replace("@LAST@", str(jobs - 1)) for word in argv],
            env={**os.environ, **self.env},
            stdout=asyncio.subprocess.DEVNULL,
        )
        assert await process.wait() == 0
        return time.perf_counter() - began


async def _nothing() -> None:
    """There is nothing to clear."""


async def measure(rounds: int) -> list[Figure]:
    """Measure one system after the other, each so that next to nothing runs meanwhile."""
    figures = []
    for part in (_slurm, _htcondor, _grid_engine, _at, _local):
        with _folder() as folder:
            figures += await part(folder, rounds)
    return figures


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder that jobs and daemons of other users may enter."""
    with tempfile.TemporaryDirectory(prefix="khomas-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


async def _slurm(folder: Path, rounds: int) -> list[Figure]:
    with slurm.running(folder / "bed") as bed:
        bed.command("scontrol", "update", "PartitionName=batch", "State=DOWN")
        bare = _Bare(("sbatch", "--array=0-@LAST@", "--output=/dev/null", "--wrap=true"), _SQUEUE, bed.environment)
        backend = open_slurm(
            SlurmSettings(
                spool=folder / "spool",
                env=bed.environment,
                max_array=10_000,
                max_batch=10_000,
                command_seconds=_PATIENCE,
                pilots=0,
            )
        )

        async def clear() -> None:
            await bare.seconds(["scancel", "--state=PENDING", "-p", "batch"])

        figures = []
        for number in (100, 1000, 10_000):
            figures += await _costs("Slurm", backend, number, rounds, bare=bare, clear=clear)
        figures += await _whole_way(bed, folder, bare, rounds)
        await clear()
        token = folder / "token"
        token.write_text(bed.token())
        rest = open_slurm_rest(
            SlurmRestSettings(url=bed.rest_url, token_file=token, spool=folder / "rest", command_seconds=_PATIENCE)
        )
        return figures + await _each("Slurm by REST", rest, (100, 1000), clear)


async def _whole_way(bed: Slurm, folder: Path, bare: _Bare, rounds: int, jobs: int = 10_000) -> list[Figure]:
    """From the client's call to the last job whose name at Slurm is written down."""
    options = {"spool": str(folder / "whole"), "env": dict(bed.environment), "pilots": 0}
    settings = {"backends": {"farm": {"kind": "slurm", "max_jobs": 10 * jobs, "options": options}}}
    accepted: list[float] = []
    handed_over: list[float] = []
    ratios: list[float] = []
    async with serve(service, state=folder / "state", settings={"scheduler": settings}) as served:
        scheduler = Scheduler(served)
        spec = ParseDict({"command": {"executable": "/bin/true"}, "splitter": {"count": {"count": jobs}}}, JobSpec())
        query = select(func.count()).select_from(tables.attempt).where(tables.attempt.c.native_id != "")
        for number in range(1, rounds + 1):
            began = time.perf_counter()
            await scheduler.submit(spec)
            accepted.append(time.perf_counter() - began)
            done = 0
            while done < number * jobs:
                await asyncio.sleep(0.1)
                async with scheduler.parts.database.read() as connection:
                    done = (await connection.execute(query)).scalar_one()
            handed_over.append(time.perf_counter() - began)
            ratios.append(handed_over[-1] / await bare.seconds(bare.submit, jobs))
    return [
        Figure(f"Slurm: array of {jobs:,} accepted by the scheduler", "s", accepted),
        Figure(f"Slurm: array of {jobs:,} accepted and handed over by the scheduler", "s", handed_over),
        Figure(f"Slurm: the same, of a bare array of {jobs:,}", "x", ratios, "<= 1.5"),
    ]


async def _htcondor(folder: Path, rounds: int) -> list[Figure]:
    with htcondor.running(folder / "bed", slots=1) as pool:
        spool = folder / "spool"
        spool.mkdir()
        shutil.chown(spool, pool.user.pw_uid, pool.user.pw_gid)
        settings = HtcondorSettings(
            spool=spool,
            prefix=pool.prefix,
            host_python="/usr/bin/python3",
            env=pool.bindings,
            collector=pool.collector,
            tokens=pool.tokens,
            domain=htcondor.DOMAIN,
            variables={"ENABLE_IPV6": "False"},
            command_seconds=_PATIENCE,
            pilots=0,
        )
        return await _each("HTCondor", open_htcondor(settings), (100, 1000))


async def _grid_engine(folder: Path, rounds: int) -> list[Figure]:
    with grid_engine.running(folder / "bed", slots=1) as engine:
        settings = GridEngineSettings(
            spool=folder / "spool",
            prefix=engine.prefix,
            tools=str(engine.tools),
            root=engine.root,
            cell=engine.cell,
            qmaster_port=engine.qmaster_port,
            execd_port=engine.execd_port,
            parallel_environment=engine.parallel_environment,
            drmaa_library=str(engine.drmaa_library),
            command_seconds=_PATIENCE,
        )
        return await _each("Grid Engine", open_grid_engine(settings), (100, 1000))


async def _at(folder: Path, rounds: int) -> list[Figure]:
    with at.running(folder / "bed") as bed:
        bed.stop()  # what it would start waits
        settings = AtSettings(spool=folder / "spool", prefix=bed.prefix, command_seconds=_PATIENCE)
        return await _each("at", open_at(settings), (100, 1000))


async def _local(folder: Path, rounds: int) -> list[Figure]:
    return await _each("local", open_local(LocalSettings(spool=folder, cpu_milli=1000)), (100, 1000, 10_000))


async def _each(
    name: str, backend: Backend, numbers: Sequence[int], clear: Callable[[], Awaitable[None]] = _nothing
) -> list[Figure]:
    try:
        return [figure for number in numbers for figure in await _costs(name, backend, number, 1, clear=clear)]
    finally:
        await backend.aclose()


async def _costs(
    name: str,
    backend: Backend,
    jobs: int,
    rounds: int,
    *,
    bare: _Bare | None = None,
    clear: Callable[[], Awaitable[None]] = _nothing,
) -> list[Figure]:
    """Hand over, look, cancel; against the bare commands in the same round."""
    each: dict[str, list[float]] = {"hand over": [], "look at": [], "cancel": []}
    ratios: dict[str, list[float]] = {"hand over": [], "look at": []}
    looks = 0
    for _ in range(rounds):
        items = [job("sleep", "600") for _ in range(jobs)]
        began = time.perf_counter()
        outcomes = await backend.submit(items)
        seconds = [time.perf_counter() - began]
        assert {outcome.kind for outcome in outcomes} == {Submitted.ACCEPTED}, outcomes[:1]
        ids = [outcome.native_id for outcome in outcomes]
        began = time.perf_counter()
        with recording() as commands:
            await backend.poll(ids)
        seconds.append(time.perf_counter() - began)
        looks = len(commands)
        if bare is not None:
            await clear()
            ratios["hand over"].append(seconds[0] / await bare.seconds(bare.submit, jobs))
            ratios["look at"].append(seconds[1] / await bare.seconds(bare.look))
        began = time.perf_counter()
        await backend.cancel(ids, GRACE)
        seconds.append(time.perf_counter() - began)
        for what, spent in zip(each, seconds, strict=True):
            each[what].append(1e6 * spent / jobs)
        await clear()
    figures = [Figure(f"{name}: {what} {jobs:,}, each", "us", spent) for what, spent in each.items()]
    if bare is not None:
        figures += [
            Figure(f"{name}: {what} {jobs:,}, of the bare command", "x", found, _goal(what, jobs))
            for what, found in ratios.items()
        ]
        figures.append(Figure(f"{name}: commands for a look at {jobs:,}", "", [float(looks)], "<= 1"))
    return figures


def _goal(what: str, jobs: int) -> str:
    return "<= 1.5" if (what, jobs) == ("hand over", _HANDOVER_GOAL) else ""
