"""Backend "slurm-rest": Slurm by slurmrestd, with a token; no command and no key of Slurm is needed on this machine."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from khomas.scheduler.backends import slurm_rest_answers as answers
from khomas.scheduler.backends.interface import BackendPlugin, ComputeResource, Submitted, Usage
from khomas.scheduler.backends.queues import with_defaults
from khomas.scheduler.backends.slurm import MIB, THROTTLED, chosen
from khomas.scheduler.backends.slurm_rest_calls import NOT_SENT, REFUSED, RestHost, SlurmRest
from khomas.scheduler.backends.spool.backend import SpooledBackend
from khomas.scheduler.backends.spool.dialect import Answer, Needs, Refusal, Status, Submission, whole_cores
from khomas.scheduler.backends.spool.settings import SpoolSettings

# What sbatch calls an option, and slurmrestd.
OPTIONS: Mapping[str, str] = {
    "account": "account",
    "cluster-constraint": "cluster_constraint",
    "constraint": "constraints",
    "exclude": "exclude_nodes",
    "gres": "gres",
    "licenses": "licenses",
    "mail-user": "mail_user",
    "nice": "nice",
    "nodelist": "nodelist",
    "partition": "partition",
    "qos": "qos",
    "reservation": "reservation",
    "wckey": "wckey",
}
_BATCHES = "khomas-"
_AGO = "now-7days"
# Ids in one call: they stand in its address.
_IN_ADDRESS = 200
# The names of submissions are longer.
_NAMES_IN_ADDRESS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmRestSettings(SpoolSettings):
    """Slurm by its REST server. The service runs as the user whose token it has, and sees the folder of jobs."""

    # Where slurmrestd answers: `http://slurm:6820`.
    url: str
    # A token of that user, as `scontrol token` prints it; a new one may be written there at any time.
    token_file: Path
    # Name of the user; needed only when the token does not say it.
    user: str = ""
    # For jobs that name no queue; empty = the default partition, and the best that fits where that is not told.
    queue: str = ""
    # Whether slurmrestd has a database to ask.
    accounting: bool = True
    # Beyond the wall time of a job, for bringing files in and out.
    margin_seconds: float = 300.0

    def __post_init__(self) -> None:
        """Refuse what is for commands."""
        SpoolSettings.__post_init__(self)
        if self.ssh or self.prefix or self.tools:
            raise ValueError("slurm-rest runs no commands: leave out ssh, prefix and tools, or use slurm")
        if urlsplit(self.url).scheme not in ("http", "https"):
            raise ValueError(f"url must be the address of slurmrestd, http(s)://host:port: {self.url!r}")


class SlurmRestDialect:
    """Calls of slurmrestd in place of commands: see `SlurmRest.command`."""

    kind = "slurm-rest"
    native_options = frozenset(OPTIONS)
    # Asked to hold an element of an array, v0.0.38 answers that it failed, also when it did not.
    can_hold = False
    by_process = False
    avoids_nodes = True

    def __init__(self, settings: SlurmRestSettings) -> None:
        self._settings = settings
        self.margin_seconds = settings.margin_seconds

    def submission(self, needs: Needs, runs: str) -> Submission:
        """One call for all jobs that ask for the same."""
        script = f"#!/bin/sh\nKHOMAS_INDEX=${{SLURM_ARRAY_TASK_ID:-0}}\n{runs}"
        job = _job(needs, needs.queue or self._settings.queue, self._settings.margin_seconds)
        return Submission(
            script,
            _submit(script, job),
            _submit(script, {**job, "array": "0-@LAST@"}),
            native=r'"job_id": (\d+)',
            refused=f"^({NOT_SENT}|{REFUSED})",
        )

    def refusal(self, answer: Answer) -> Refusal:
        """Tell a refusal from what may go well later."""
        said = " ".join(answer.stderr.split())
        if said.startswith(NOT_SENT) or THROTTLED.search(said):
            return Refusal(Submitted.THROTTLED, said, timedelta(seconds=30))
        return Refusal(Submitted.REJECTED, said.removeprefix(REFUSED))

    def element(self, native: str, index: int) -> str:
        """`417_3`."""
        return f"{native}_{index}"

    def whole(self, native_id: str) -> tuple[str, int]:
        """`417` and 3."""
        native, _, index = native_id.partition("_")
        return native, int(index) if index.isdigit() else 0

    def status(self, natives: Sequence[str]) -> list[list[str]]:
        """All jobs that the controller remembers."""
        return [["GET", "slurm/jobs", _BATCHES]]

    def statuses(self, answers_: Sequence[Answer]) -> Mapping[str, Status]:
        """By native id."""
        return answers.statuses(_document(answers_[0]))

    def accounting(self, native_ids: Sequence[str]) -> list[list[str]]:
        """Ask the database."""
        if not self._settings.accounting:
            return []
        return [_database(f"step={quote(','.join(some))}") for some in _pieces(native_ids, _IN_ADDRESS)]

    def accounts(self, answers_: Sequence[Answer]) -> Mapping[str, tuple[Status, Usage]]:
        """By native id."""
        return {native: told for one in answers_ for native, told in answers.accounts(_document(one)).items()}

    def search(self, batches: Sequence[str]) -> list[list[str]]:
        """By job name: what the controller remembers, then the database."""
        found = self.status(batches)
        if self._settings.accounting:
            pieces = _pieces(batches, _NAMES_IN_ADDRESS)
            found += [_database(f"skip_steps=true&job_name={quote(','.join(some))}") for some in pieces]
        return found

    def found(self, answers_: Sequence[Answer]) -> Mapping[str, str]:
        """Native ids by the names of the submissions."""
        return {name: native for one in answers_ for name, native in answers.names(_document(one)).items()}

    def cancel(self, native_ids: Sequence[str], *, running: bool) -> list[list[str]]:
        """SIGTERM for what runs: the wrapper does the rest; what waits just goes."""
        return [["DELETE", "slurm/job/{}?signal=SIGTERM" if running else "slurm/job/{}", *native_ids]]

    def hold(self, native_ids: Sequence[str], on: bool) -> list[list[str]]:
        """Not offered, see `can_hold`."""
        return []

    def resources(self) -> list[list[str]]:
        """Partitions, nodes, and what waits."""
        return [["GET", "slurm/partitions"], ["GET", "slurm/nodes"], ["GET", "slurm/jobs", ""]]

    def queues(self, answers_: Sequence[Answer]) -> list[ComputeResource]:
        """A row a partition."""
        partitions, nodes, jobs = (_document(one) for one in answers_)
        told, queue = answers.queues(partitions, nodes, jobs), self._settings.queue
        return with_defaults(told, [queue]) if queue else told


def _job(needs: Needs, queue: str, margin: float) -> dict[str, Any]:
    """What is asked for; the wrapper enforces the job's own limits, these stand a little behind them."""
    job: dict[str, Any] = {
        "name": "@BATCH@",
        "standard_input": "/dev/null",
        "standard_output": "/dev/null",
        "standard_error": "/dev/null",
        "current_working_directory": "/",
        # It may not be empty.
        "environment": {"PATH": "/usr/local/bin:/usr/bin:/bin"},
        "requeue": False,
        "tasks": 1,
        "cpus_per_task": whole_cores(needs),
    }
    if needs.memory_bytes:
        job["memory_per_node"] = math.ceil(needs.memory_bytes / MIB) + 64
    if needs.wall_time_s:
        job["time_limit"] = math.ceil((needs.wall_time_s + margin) / 60)
    if queue:
        job["partition"] = queue
    return job | {OPTIONS[name]: value for name, value in chosen(needs).items()}


def _submit(script: str, job: Mapping[str, Any]) -> list[str]:
    return ["POST", "slurm/job/submit", json.dumps({"script": script, "job": job})]


def _database(query: str) -> list[str]:
    return ["GET", f"slurmdb/jobs?start_time={_AGO}&{query}"]


def _pieces(words: Sequence[str], size: int) -> list[Sequence[str]]:
    return [words[start : start + size] for start in range(0, len(words), size)]


def _document(answer: Answer) -> answers.Document:
    document: answers.Document = json.loads(answer.text())
    return document


def open_slurm_rest(settings: SlurmRestSettings) -> SpooledBackend:
    """Open Slurm by its REST server."""
    host = RestHost(SlurmRest(settings.url, settings.token_file, settings.user))
    return SpooledBackend(host, settings, SlurmRestDialect(settings))


plugin = BackendPlugin(
    name="slurm-rest",
    settings=SlurmRestSettings,
    open=open_slurm_rest,
    credential_options={"token": "token_file"},
)
