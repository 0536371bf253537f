"""Backend "slurm": sbatch, squeue, sacct, scancel, sinfo; text with fixed separators, which is the fastest to read."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from khomas.scheduler.backends.interface import BackendPlugin, ComputeResource, State, Submitted, Usage
from khomas.scheduler.backends.spool.backend import SpooledBackend
from khomas.scheduler.backends.spool.dialect import (
    Answer,
    Needs,
    Refusal,
    Status,
    Submission,
    UnreadableAnswerError,
    whole_cores,
)
from khomas.scheduler.backends.spool.settings import PilotSettings

MIB = 1 << 20
# Options of a job, as sbatch calls them.
OPTIONS = frozenset(
    {
        "account",
        "cluster-constraint",
        "constraint",
        "exclude",
        "exclusive",
        "gres",
        "licenses",
        "mail-user",
        "nice",
        "nodelist",
        "partition",
        "qos",
        "reservation",
        "tmp",
        "wckey",
    }
)
# States that squeue, sacct and the REST interface tell, https://slurm.schedmd.com/squeue.html#SECTION_JOB-STATE-CODES.
STATES: Mapping[str, State] = {
    "PENDING": State.QUEUED,
    "CONFIGURING": State.QUEUED,
    "REQUEUED": State.QUEUED,
    "REQUEUE_FED": State.QUEUED,
    "REQUEUE_HOLD": State.QUEUED,
    "RESV_DEL_HOLD": State.QUEUED,
    "SPECIAL_EXIT": State.QUEUED,
    "RUNNING": State.RUNNING,
    "COMPLETING": State.RUNNING,
    "RESIZING": State.RUNNING,
    "SIGNALING": State.RUNNING,
    "STAGE_OUT": State.RUNNING,
    "SUSPENDED": State.SUSPENDED,
    "STOPPED": State.SUSPENDED,
    "COMPLETED": State.SUCCEEDED,
    "CANCELLED": State.CANCELLED,
    "PREEMPTED": State.CANCELLED,
    "REVOKED": State.CANCELLED,
    "FAILED": State.FAILED,
    "BOOT_FAIL": State.FAILED,
    "DEADLINE": State.FAILED,
    "NODE_FAIL": State.FAILED,
    "OUT_OF_MEMORY": State.FAILED,
    "TIMEOUT": State.FAILED,
}
# Ends that the batch system brought about before the wrapper could say why.
ENDS: Mapping[str, tuple[str, str]] = {
    "OUT_OF_MEMORY": ("LIMIT_MEMORY", "Slurm ended it: out of memory"),
    "TIMEOUT": ("LIMIT_WALL", "Slurm ended it at its time limit"),
    "DEADLINE": ("LIMIT_WALL", "Slurm ended it at its deadline"),
}
_REFUSED = r"(?i)error: (?!.*(timed out|unable to contact|connect|communication|try again))"
THROTTLED = re.compile(r"(?i)(MaxSubmit|QOSMaxSubmit|job submit limit|AssocGrp|temporarily|queue full|MaxJobCount)")
_SQUEUE = "%F|%K|%T|%N|%P|%S|%e|%r"
_SACCT = (
    "JobID,State,ExitCode,ElapsedRaw,UserCPU,SystemCPU,MaxRSS,MaxDiskRead,MaxDiskWrite,NodeList,Partition,Start,End"
)
_SINFO = "%P|%a|%C|%m|%c|%l|%T|%r"
_AGO = "now-7days"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmSettings(PilotSettings):
    """Slurm on this machine, or on a submit host behind ssh."""

    # Whether sacct has a database to ask.
    accounting: bool = True
    # Beyond the wall time of a job, for bringing files in and out.
    margin_seconds: float = 300.0


class SlurmDialect:
    """Slurm's commands, 22.05 and newer."""

    kind = "slurm"
    native_options = OPTIONS
    can_hold = True
    by_process = False
    avoids_nodes = True

    def __init__(self, settings: SlurmSettings) -> None:
        self._settings = settings
        self.margin_seconds = settings.margin_seconds

    def submission(self, needs: Needs, runs: str) -> Submission:
        """One sbatch for all jobs that ask for the same."""
        options = [
            "--parsable",
            "--job-name=@BATCH@",
            "--output=/dev/null",
            "--error=/dev/null",
            "--no-requeue",
            "--export=NIL",
            "--chdir=/",
            "--ntasks=1",
            f"--cpus-per-task={whole_cores(needs)}",
            *limits(needs, self._settings.margin_seconds),
            *([f"--partition={needs.queue}"] if needs.queue else []),
            *(f"--{name}" if value is True else f"--{name}={value}" for name, value in chosen(needs).items()),
        ]
        sbatch = [self._settings.tool("sbatch"), *options]
        script = f"#!/bin/sh\nKHOMAS_INDEX=${{SLURM_ARRAY_TASK_ID:-0}}\n{runs}"
        return Submission(
            script,
            [*sbatch, "@SCRIPT@"],
            [*sbatch, "--array=0-@LAST@", "@SCRIPT@"],
            native=r"(?m)^(\d+)",
            refused=_REFUSED,
        )

    def refusal(self, answer: Answer) -> Refusal:
        """Tell a full queue from a refusal."""
        said = " ".join(answer.stderr.split()) or f"sbatch ended with {answer.exit_code}"
        if THROTTLED.search(said):
            return Refusal(Submitted.THROTTLED, said, timedelta(seconds=30))
        return Refusal(Submitted.REJECTED, said)

    def element(self, native: str, index: int) -> str:
        """`417_3`."""
        return f"{native}_{index}"

    def whole(self, native_id: str) -> tuple[str, int]:
        """`417` and 3."""
        native, _, index = native_id.partition("_")
        return native, int(index) if index.isdigit() else 0

    def status(self, natives: Sequence[str]) -> list[list[str]]:
        """All our jobs that the controller remembers, unfolded."""
        return [[self._settings.tool("squeue"), "--me", "-h", "-r", "-t", "all", "-o", _SQUEUE]]

    def statuses(self, answers: Sequence[Answer]) -> Mapping[str, Status]:
        """By native id."""
        found = {}
        for line in answers[0].text().splitlines():
            array, index, state, node, queue, start, end, why = line.split("|", 7)
            native = array if index == "N/A" else f"{array}_{index}"
            found[native] = _status(state, node, queue, start, end, why)
        return found

    def accounting(self, native_ids: Sequence[str]) -> list[list[str]]:
        """One sacct for all, by the arrays that they are in."""
        if not self._settings.accounting or not native_ids:
            return []
        arrays = ",".join(dict.fromkeys(self.whole(one)[0] for one in native_ids))
        return [[self._settings.tool("sacct"), "-n", "-P", "-S", _AGO, "-j", arrays, "-o", _SACCT]]

    def accounts(self, answers: Sequence[Answer]) -> Mapping[str, tuple[Status, Usage]]:
        """By native id; memory and disk are told of the step that is the batch script."""
        found: dict[str, tuple[Status, Usage]] = {}
        for line in answers[0].text().splitlines():
            row = line.split("|")
            native, _, step = row[0].partition(".")
            if not step:
                found[native] = _status(row[1], row[9], row[10], row[11], row[12], row[2]), _usage(row)
            elif step == "batch" and native in found:
                status, usage = found[native]
                found[native] = status, _with_memory(usage, row)
        return found

    def search(self, batches: Sequence[str]) -> list[list[str]]:
        """By job name: what the controller remembers, then the database."""
        names = f"--name={','.join(batches)}"
        found = [[self._settings.tool("squeue"), "--me", "-h", "-t", "all", "-o", "%F|%j", names]]
        if self._settings.accounting:
            sacct = [self._settings.tool("sacct"), "-n", "-P", "-X", "-S", _AGO, "-o", "JobID,JobName%80", names]
            found.append(sacct)
        return found

    def found(self, answers: Sequence[Answer]) -> Mapping[str, str]:
        """Native ids by the names of the submissions."""
        lines = [line for answer in answers for line in answer.text().splitlines() if line]
        rows = (line.strip().split("|") for line in lines)
        return {name: native.partition("_")[0] for native, name in rows}

    def cancel(self, native_ids: Sequence[str], *, running: bool) -> list[list[str]]:
        """SIGTERM for the wrapper of what runs, which is the batch script; what waits just goes."""
        scancel = [self._settings.tool("scancel"), "--quiet"]
        return [[*scancel, *(["--signal=TERM", "--batch"] if running else []), *_folded(native_ids)]]

    def hold(self, native_ids: Sequence[str], on: bool) -> list[list[str]]:
        """Keep waiting jobs from starting."""
        order = "hold" if on else "release"
        return [[self._settings.tool("scontrol"), order, ",".join(native_ids)]] if native_ids else []

    def resources(self) -> list[list[str]]:
        """Partitions and what waits in them."""
        return [
            [self._settings.tool("sinfo"), "-h", "-e", "-o", _SINFO],
            [self._settings.tool("squeue"), "-h", "-r", "-t", "PENDING,RUNNING", "-o", "%P|%T"],
        ]

    def queues(self, answers: Sequence[Answer]) -> list[ComputeResource]:
        """A row a partition: the largest job that fits, and what is free."""
        rows: dict[str, list[list[str]]] = {}
        for line in answers[0].text().splitlines():
            row = line.strip().split("|")
            rows.setdefault(row[0], []).append(row)
        jobs = [line.strip().split("|") for line in answers[1].text().splitlines()]
        return [
            _queue(name, parts, [state for where, state in jobs if where == name.rstrip("*")])
            for name, parts in rows.items()
        ]


def chosen(needs: Needs) -> dict[str, Any]:
    """Native options, with the nodes to avoid among those that the job excludes itself."""
    if not needs.avoid_nodes:
        return dict(needs.native)
    excluded = [str(needs.native["exclude"])] if "exclude" in needs.native else []
    return {**needs.native, "exclude": ",".join([*excluded, *needs.avoid_nodes])}


def limits(needs: Needs, margin: float) -> list[str]:
    """Memory and time; the wrapper enforces the job's own limits, these stand a little behind them."""
    found = []
    if needs.memory_bytes:
        found.append(f"--mem={math.ceil(needs.memory_bytes / MIB) + 64}M")
    if needs.wall_time_s:
        found.append(f"--time={math.ceil((needs.wall_time_s + margin) / 60)}")
    return found


def _status(state: str, node: str, queue: str, start: str, end: str, why: str) -> Status:
    word = state.split(" ", maxsplit=1)[0].rstrip("+")
    if word not in STATES:
        raise UnreadableAnswerError(f"Slurm told the state {state!r}, which is not known")
    reason, message = ENDS.get(word, ("", ""))
    told = f"{word} ({why})" if word == "PENDING" and why else word
    place = "" if node in ("", "None assigned", "(null)") else node
    return Status(STATES[word], told, place, queue, _time(start), _time(end), None, reason, message)


def _time(text: str) -> datetime | None:
    """A time of the cluster, in this machine's zone."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        return None  # N/A, Unknown, None


def _usage(row: Sequence[str]) -> Usage:
    return Usage(wall_s=float(row[3] or 0), cpu_user_s=_clock(row[4]), cpu_system_s=_clock(row[5]))


def _with_memory(usage: Usage, row: Sequence[str]) -> Usage:
    return Usage(
        wall_s=usage.wall_s,
        cpu_user_s=usage.cpu_user_s,
        cpu_system_s=usage.cpu_system_s,
        max_memory_bytes=_bytes(row[6]),
        read_bytes=_bytes(row[7]),
        write_bytes=_bytes(row[8]),
    )


def _clock(text: str) -> float:
    """`[days-][hours:]minutes:seconds` in seconds."""
    days, _, rest = text.rpartition("-")
    seconds = 0.0
    for part in rest.split(":"):
        seconds = seconds * 60 + float(part or 0)
    return seconds + 86400 * int(days or 0)


def _bytes(text: str) -> int:
    """Slurm's units are powers of 1024."""
    if not text:
        return 0
    factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}.get(text[-1])
    return int(float(text[:-1]) * factor) if factor else int(float(text))


def _folded(native_ids: Sequence[str]) -> list[str]:
    """`417_[0,3,4]` for the elements of one array, so that many fit into one command."""
    arrays: dict[str, list[str]] = {}
    for one in native_ids:
        array, _, index = one.partition("_")
        arrays.setdefault(array, []).append(index)
    return [f"{array}_[{','.join(some)}]" if some[0] else array for array, some in arrays.items()]


def _queue(name: str, rows: Sequence[Sequence[str]], states: Sequence[str]) -> ComputeResource:
    up = any(row[1] == "up" for row in rows)
    for_us = any(row[7] == "no" for row in rows)  # only root: yes, no
    used = [[int(part) for part in row[2].split("/")] for row in rows]
    known = {row[5].rstrip("*") for row in rows}
    longest = None if "infinite" in known else max((_limit(text) for text in known), default=None)
    return ComputeResource(
        queue=name.rstrip("*"),
        cpu_milli=1000 * sum(total - other for _, _, other, total in used) or None,
        max_cpu_milli=1000 * max(int(row[4].rstrip("+")) for row in rows),
        free_cpu_milli=1000 * sum(idle for _, idle, _, _ in used),
        max_memory_bytes=max(int(row[3].rstrip("+")) for row in rows) * MIB,
        max_wall_time=longest,
        running_jobs=states.count("RUNNING"),
        queued_jobs=states.count("PENDING"),
        message="" if up and for_us else "the partition is for root only" if up else "the partition is down",
        closed=not (up and for_us),
        is_default=name.endswith("*"),
    )


def _limit(text: str) -> timedelta:
    """`[days-]hours:minutes:seconds`."""
    return timedelta(seconds=_clock(text))


def open_slurm(settings: SlurmSettings) -> SpooledBackend:
    """Open Slurm by its commands."""
    return SpooledBackend(settings.host(), settings, SlurmDialect(settings))


plugin = BackendPlugin(
    name="slurm",
    settings=SlurmSettings,
    open=open_slurm,
    credential_options={"key": "ssh_key"},
    credential_environment="env",
)
