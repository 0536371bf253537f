"""What a job costs on its node before it begins and after it has ended: CPU of the wrapper, and of a look at jobs."""

import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from khomas.scheduler.wrapper import JOB_WRAPPER, SPOOL_KEEPER, STARTER
from khomas.scheduler.wrapper.khomas_spool import Spool
from tests.performance.figures import Figure

_STARTS = 20
_PYTHON = (sys.executable, "-E", "-s")
_BATCH = "khomas-1"


async def measure(rounds: int) -> list[Figure]:
    """Measure the start of the wrapper and of the keeper, compiled as nodes keep them and from their source."""
    return await asyncio.to_thread(_measured, rounds)


def _measured(rounds: int) -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="khomas-") as name:
        programs, spool = Path(name) / "bin", Path(name) / "spool"
        programs.mkdir()
        for program in (STARTER, JOB_WRAPPER, SPOOL_KEEPER):
            (programs / program.name).write_bytes(program.read_bytes())
        subprocess.run([*_PYTHON, "-m", "compileall", "-q", programs], check=True)
        look = json.dumps({"op": "look", "spool": str(spool), "wanted": [], "seconds": 5.0}).encode()
        ways: dict[str, Callable[[Path], list[str | Path]]] = {
            "compiled": lambda program: [programs / STARTER.name, program.stem],
            "from source": lambda program: [programs / program.name],
        }
        figures = [Figure("bare interpreter", "ms CPU", [_cpu([["-c", "pass"]] * _STARTS) for _ in range(rounds)])]
        for way, started in ways.items():
            jobs = Figure(f"`true` by the wrapper, {way}", "ms CPU")
            looks = Figure(f"a look by the keeper, {way}", "ms CPU")
            for number in range(rounds):
                folder = spool / f"{way[0]}{number}"
                _hand_over(folder)
                wrapper = [*started(JOB_WRAPPER), "element", folder, _BATCH]
                jobs.rounds.append(_cpu([[*wrapper, str(job)] for job in range(_STARTS)]))
                looks.rounds.append(_cpu([started(SPOOL_KEEPER)] * _STARTS, look))
            figures += [jobs, looks]
    return figures


def _hand_over(spool: Path) -> None:
    """Write jobs down as a submission to a batch system does."""
    jobs = [{"token": f"t{job}", "manifest": {"token": f"t{job}", "command": ["true"]}} for job in range(_STARTS)]
    batch = {"batch": _BATCH, "jobs": jobs, "script": "", "native": r"(\d+)", "single": [], "array": []}
    told = {"argv": [], "exit_code": 0, "stdout": "1", "stderr": "", "time": 0.0}
    Spool(str(spool), lambda *_: told).submit({"batches": [batch], "seconds": 5.0})


def _cpu(runs: Sequence[Sequence[str | Path]], stdin: bytes = b"") -> float:
    """CPU of one of these starts, in ms."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for words in runs:
        subprocess.run([*_PYTHON, *words], check=True, input=stdin, stdout=subprocess.DEVNULL, env={"PATH": os.defpath})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1e3 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / len(runs)
