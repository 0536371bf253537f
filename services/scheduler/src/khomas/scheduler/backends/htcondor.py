"""Backend "htcondor": a pool by HTCondor's own Python bindings, each call in a process of its own."""

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from khomas.scheduler.backends import htcondor_answers as answers
from khomas.scheduler.backends import htcondor_worker
from khomas.scheduler.backends.interface import BackendPlugin, ComputeResource, Submitted, Usage
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

# Options of a job, as a submit file calls them.
OPTIONS = frozenset(
    {
        "accounting_group",
        "accounting_group_user",
        "concurrency_limits",
        "nice_user",
        "priority",
        "rank",
        "requirements",
    }
)
# How far back past jobs are looked for.
_AGO = "EnteredCurrentStatus < time() - 7 * 86400"
# Nothing starts twice, and nothing stays held that no person holds: who runs a job again is the scheduler.
_REMOVE = "(JobStatus == 5 && HoldReasonCode =!= 1 && HoldReasonCode =!= 16) || (JobStatus == 1 && NumJobStarts > 0)"
_FULL = re.compile(r"(?i)MAX_JOBS|limit|exceed")


@dataclass(frozen=True, slots=True, kw_only=True)
class HtcondorSettings(PilotSettings):
    """A pool that is reached over the network, and a folder of jobs that its nodes see under the same path."""

    # Its collector: `cm.example.org:9618`.
    collector: str
    # Name of the schedd that takes the jobs; empty = the only one of the pool.
    schedd: str = ""
    # Folder with a token of the user whose jobs they become, see condor_token_create.
    tokens: Path | None = None
    # FILESYSTEM_DOMAIN and UID_DOMAIN of nodes that see the folder of jobs.
    domain: str
    # Variables of HTCondor's configuration, as condor_config has them.
    variables: Mapping[str, str] = field(default_factory=dict)
    # What the pool is called where queues are asked for.
    pool: str = "pool"
    # Beyond the wall time of a job, for bringing files in and out.
    margin_seconds: float = 300.0
    # Between the order to end and SIGKILL by HTCondor; the wrapper is quicker.
    vacate_seconds: int = 900
    # Many pools have slots of one core.
    pilots: int = 64
    pilot_cores: int = 1

    def __post_init__(self) -> None:
        """Refuse what is for commands."""
        PilotSettings.__post_init__(self)
        if self.ssh or self.tools:
            raise ValueError("htcondor reaches its pool over the network: leave out ssh and tools")

    @property
    def worker_env(self) -> dict[str, str]:
        """The configuration of the bindings, without any file."""
        security = {"SEC_DEFAULT_AUTHENTICATION_METHODS": "IDTOKENS"} if self.tokens else {}
        folder = {"SEC_TOKEN_DIRECTORY": str(self.tokens)} if self.tokens else {}
        domain = {"UID_DOMAIN": self.domain, "FILESYSTEM_DOMAIN": self.domain}
        variables = {"COLLECTOR_HOST": self.collector, **domain, **security, **folder, **self.variables}
        return {
            "CONDOR_CONFIG": "ONLY_ENV",
            **{f"_CONDOR_{name}": value for name, value in variables.items()},
            **self.env,
        }


class HtcondorDialect:
    """The calls of the bindings in place of commands, and their answers."""

    kind = "htcondor"
    native_options = OPTIONS
    can_hold = True
    by_process = False
    avoids_nodes = True

    def __init__(self, settings: HtcondorSettings) -> None:
        self._settings = settings
        self.margin_seconds = settings.margin_seconds
        python = settings.host_python or sys.executable
        self._worker = [python, htcondor_worker.__file__, settings.schedd]
        self._ours = f"KhomasSpool =?= {json.dumps(str(settings.spool))}"

    def submission(self, needs: Needs, runs: str) -> Submission:
        """One cluster for all jobs that ask for the same."""
        if needs.queue not in ("", self._settings.pool):
            raise ValueError(f"HTCondor has no queues; the pool is called {self._settings.pool!r}")
        words = [*self._worker, "submit", "@FOLDER@", "@SCRIPT@", json.dumps(self._description(needs))]
        return Submission(
            f"#!/bin/sh\nKHOMAS_INDEX=$1\n{runs}",
            words,
            words,
            native=r'"cluster": (\d+)',
            refused=f"^({htcondor_worker.UNREACHED}|{htcondor_worker.REFUSED})",
        )

    def _description(self, needs: Needs) -> dict[str, str]:
        description = {
            "universe": "vanilla",
            "arguments": "$(ProcId)",
            "initialdir": "/",
            "transfer_executable": "false",
            "should_transfer_files": "NO",
            "notification": "never",
            "request_cpus": str(whole_cores(needs)),
            "kill_sig": "SIGTERM",
            "want_graceful_removal": "true",
            "job_max_vacate_time": str(self._settings.vacate_seconds),
            "periodic_remove": _REMOVE,
            "My.KhomasSpool": json.dumps(str(self._settings.spool)),
            "My.KhomasBatch": '"@BATCH@"',
        }
        # The wrapper enforces the job's own limits, these stand a little behind them.
        if needs.memory_bytes:
            description["request_memory"] = str(math.ceil(needs.memory_bytes / answers.MIB) + 64)
        if needs.disk_bytes:
            description["request_disk"] = str(math.ceil(needs.disk_bytes / answers.KIB))
        if needs.wall_time_s:
            description["allowed_execute_duration"] = str(math.ceil(needs.wall_time_s + self._settings.margin_seconds))
        description |= {name: _line(name, value) for name, value in needs.native.items()}
        if needs.avoid_nodes:
            # Some tell their full names, some do not.
            hosts = ", ".join(json.dumps(node.partition(".")[0]) for node in needs.avoid_nodes)
            elsewhere = f'!member(split(Machine, ".")[0], {{{hosts}}})'
            wanted = description.get("requirements")
            description["requirements"] = f"({wanted}) && {elsewhere}" if wanted else elsewhere
        return description

    def refusal(self, answer: Answer) -> Refusal:
        """Tell a refusal from what may go well later."""
        said = " ".join(answer.stderr.split())
        if said.startswith(htcondor_worker.UNREACHED) or _FULL.search(said):
            return Refusal(Submitted.THROTTLED, said, timedelta(seconds=30))
        return Refusal(Submitted.REJECTED, said.removeprefix(htcondor_worker.REFUSED))

    def element(self, native: str, index: int) -> str:
        """`417.3`."""
        return f"{native}.{index}"

    def whole(self, native_id: str) -> tuple[str, int]:
        """`417` and 3."""
        native, _, index = native_id.partition(".")
        return native, int(index) if index.isdigit() else 0

    def status(self, natives: Sequence[str]) -> list[list[str]]:
        """All our jobs that are in the queue."""
        return [[*self._worker, "query", self._ours, ",".join(answers.JOB)]]

    def statuses(self, answers_: Sequence[Answer]) -> Mapping[str, Status]:
        """By native id."""
        return answers.statuses(_read(answers_[0]))

    def accounting(self, native_ids: Sequence[str]) -> list[list[str]]:
        """The history of these jobs."""
        if not native_ids:
            return []
        places = [self.whole(one) for one in native_ids]
        clusters = ",".join(dict.fromkeys(cluster for cluster, _ in places))
        constraint = f"member(ClusterId, {{{clusters}}})"
        return [[*self._worker, "history", constraint, ",".join(answers.PAST), "-1", _AGO]]

    def accounts(self, answers_: Sequence[Answer]) -> Mapping[str, tuple[Status, Usage]]:
        """By native id."""
        return answers.accounts(_read(answers_[0]))

    def search(self, batches: Sequence[str]) -> list[list[str]]:
        """By the attribute that the jobs carry, in the queue and in the history."""
        names = ",".join(json.dumps(batch) for batch in batches)
        return [[*self._worker, "found", f"member(KhomasBatch, {{{names}}})", "ClusterId,KhomasBatch", _AGO]]

    def found(self, answers_: Sequence[Answer]) -> Mapping[str, str]:
        """Clusters by the names of the submissions."""
        return {str(ad["KhomasBatch"]): str(ad["ClusterId"]) for ad in _read(answers_[0])}

    def cancel(self, native_ids: Sequence[str], *, running: bool) -> list[list[str]]:
        """Remove; what runs gets SIGTERM, and its wrapper does the rest."""
        return self._act("Remove", native_ids)

    def hold(self, native_ids: Sequence[str], on: bool) -> list[list[str]]:
        """Hold or release."""
        return self._act("Hold" if on else "Release", native_ids)

    def _act(self, action: str, native_ids: Sequence[str]) -> list[list[str]]:
        jobs = ["{}.{}".format(*self.whole(one)) for one in native_ids]
        return [[*self._worker, "act", action, *jobs]] if jobs else []

    def resources(self) -> list[list[str]]:
        """Slots and schedds."""
        return [[*self._worker, "pool", ",".join(answers.SLOT), ",".join(answers.SCHEDD)]]

    def queues(self, answers_: Sequence[Answer]) -> list[ComputeResource]:
        """The pool."""
        told = _read(answers_[0])
        return [answers.pool_of(told["slots"], told["schedds"], self._settings.pool)]


def _line(name: str, value: object) -> str:
    """One line of a submit file. Raises ValueError."""
    text = str(value)
    if "\n" in text or "\r" in text:
        raise ValueError(f"{name} must be one line: {text!r}")
    return text


def _read(answer: Answer) -> Any:
    try:
        return json.loads(answer.text())
    except ValueError as error:
        raise UnreadableAnswerError(f"no whole JSON: {error}") from None


def open_htcondor(settings: HtcondorSettings) -> SpooledBackend:
    """Open a pool."""
    settings = replace(settings, env=settings.worker_env)
    return SpooledBackend(settings.host(), settings, HtcondorDialect(settings))


plugin = BackendPlugin(name="htcondor", settings=HtcondorSettings, open=open_htcondor)
