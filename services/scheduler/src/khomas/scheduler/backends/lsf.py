"""Backend "lsf": IBM Spectrum LSF by its commands. Emulated: tried on documented answers alone."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from khomas.scheduler.backends.interface import BackendPlugin, ComputeResource, Submitted, Usage
from khomas.scheduler.backends.lsf_answers import FIELDS, Row, parse_defaults, parse_jobs, parse_queues
from khomas.scheduler.backends.queues import with_defaults
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
from khomas.scheduler.backends.spool.settings import SpoolSettings

MIB = 1 << 20
_IDS_PER_COMMAND = 500
# What a job may ask for: its name, and how bsub calls it.
_OPTIONS = {"application": "-app", "group": "-G", "priority": "-sp", "project": "-P", "resources": "-R"}
_SCRIPT = """#!/bin/sh
index=${{LSB_JOBINDEX:-0}}
KHOMAS_INDEX=$((index > 0 ? index - 1 : 0))
{runs}
"""
_REFUSED = r"[Jj]ob not submitted|is not a valid|Request aborted by esub"
_FULL = re.compile(r"(?i)(job|pending).* limit")
# Ends that LSF brought about before the wrapper could say why.
_ENDS = {"TERM_MEMLIMIT": "LIMIT_MEMORY", "TERM_RUNLIMIT": "LIMIT_WALL", "TERM_CPULIMIT": "LIMIT_CPU"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LsfSettings(SpoolSettings):
    """LSF on this machine, or on a submit host behind ssh; LSF_ENVDIR and its like go into `env`."""

    # For jobs that name no queue; empty = LSF decides.
    queue: str = ""
    # Beyond the wall time of a job, for bringing files in and out.
    margin_seconds: float = 300.0


class LsfDialect:
    """The commands of LSF 10.1 and their answers."""

    kind = "lsf"
    native_options = frozenset(_OPTIONS)
    can_hold = True
    by_process = False
    avoids_nodes = False

    def __init__(self, settings: LsfSettings) -> None:
        self._settings = settings
        self.margin_seconds = settings.margin_seconds

    def submission(self, needs: Needs, runs: str) -> Submission:
        """One array for all; its elements are counted from 1."""
        options = ["-o", "/dev/null", "-cwd", "/", "-rn", "-n", str(whole_cores(needs)), "-R", "span[hosts=1]"]
        if needs.memory_bytes:
            options += ["-M", f"{math.ceil(needs.memory_bytes / MIB) + 64}MB"]
        if needs.wall_time_s:
            options += ["-W", str(math.ceil((needs.wall_time_s + self._settings.margin_seconds) / 60))]
        if queue := needs.queue or self._settings.queue:
            options += ["-q", queue]
        for name, value in needs.native.items():
            options += [_OPTIONS[name], str(value)]
        bsub = self._tool("bsub")
        return Submission(
            _SCRIPT.format(runs=runs),
            [bsub, "-J", "@BATCH@", *options, "@SCRIPT@"],
            [bsub, "-J", "@BATCH@[1-@COUNT@]", *options, "@SCRIPT@"],
            native=r"Job <(\d+)> is submitted",
            refused=_REFUSED,
        )

    def _tool(self, name: str) -> str:
        return self._settings.tool(name)

    def refusal(self, answer: Answer) -> Refusal:
        """Tell a full queue from a refusal."""
        said = " ".join(answer.stderr.split()) or f"bsub ended with {answer.exit_code}"
        return Refusal(Submitted.THROTTLED if _FULL.search(said) else Submitted.REJECTED, said)

    def element(self, native: str, index: int) -> str:
        """`12[4]` is the fourth one."""
        return f"{native}[{index + 1}]"

    def whole(self, native_id: str) -> tuple[str, int]:
        """`12` and 3."""
        number, _, index = native_id.rstrip("]").partition("[")
        return number, int(index) - 1 if index.isdigit() else 0

    def status(self, natives: Sequence[str]) -> list[list[str]]:
        """All elements of these arrays, also those that ended a while ago."""
        return [[self._tool("bjobs"), "-a", "-json", "-o", FIELDS, *natives]]

    def statuses(self, answers: Sequence[Answer]) -> Mapping[str, Status]:
        """By native id."""
        return {row.native_id: _status(row) for row in _rows(answers)}

    def accounting(self, native_ids: Sequence[str]) -> list[list[str]]:
        """What bjobs still tells of ended jobs; bhist and bacct print for people."""
        return self.status(list(dict.fromkeys(self.whole(one)[0] for one in native_ids))) if native_ids else []

    def accounts(self, answers: Sequence[Answer]) -> Mapping[str, tuple[Status, Usage]]:
        """By native id."""
        return {row.native_id: (_status(row), row.usage) for row in _rows(answers) if row.usage is not None}

    def search(self, batches: Sequence[str]) -> list[list[str]]:
        """By job names, one command each."""
        return [[self._tool("bjobs"), "-a", "-json", "-o", FIELDS, "-J", batch] for batch in batches]

    def found(self, answers: Sequence[Answer]) -> Mapping[str, str]:
        """Numbers of jobs by their names."""
        return {row.name: self.whole(row.native_id)[0] for row in _rows(answers)}

    def cancel(self, native_ids: Sequence[str], *, running: bool) -> list[list[str]]:
        """SIGINT, SIGTERM, later SIGKILL."""
        return self._for_each("bkill", native_ids)

    def hold(self, native_ids: Sequence[str], on: bool) -> list[list[str]]:
        """Hold or release."""
        return self._for_each("bstop" if on else "bresume", native_ids)

    def _for_each(self, tool: str, native_ids: Sequence[str]) -> list[list[str]]:
        starts = range(0, len(native_ids), _IDS_PER_COMMAND)
        return [[self._tool(tool), *native_ids[start : start + _IDS_PER_COMMAND]] for start in starts]

    def resources(self) -> list[list[str]]:
        """Queues, hosts, and which queues are the default ones."""
        return [
            [self._tool("bqueues"), "-json", "-o", "queue_name status max njobs pend run"],
            [self._tool("bhosts"), "-json", "-o", "host_name status max njobs run"],
            [self._tool("bparams")],
        ]

    def queues(self, answers: Sequence[Answer]) -> list[ComputeResource]:
        """The queues."""
        try:
            told, queue = parse_queues(answers[0].text(), answers[1].text()), self._settings.queue
            return with_defaults(told, [queue] if queue else parse_defaults(answers[2].stdout))
        except ValueError as error:
            raise UnreadableAnswerError(f"no JSON: {error}") from None


def _rows(answers: Sequence[Answer]) -> list[Row]:
    """Read bjobs, which ends with 255 when one of the jobs is not there."""
    now, rows = datetime.now(UTC), []
    for answer in answers:
        if answer.exit_code != 0 and "RECORDS" not in answer.stdout and "not found" not in answer.stderr:
            answer.text()
        try:
            rows += parse_jobs(answer.stdout, now)
        except (ValueError, KeyError) as error:
            raise UnreadableAnswerError(f"bjobs: {error}") from None
    return rows


def _status(row: Row) -> Status:
    reason = _ENDS.get(row.message.partition(":")[0], "")
    return Status(
        row.state,
        row.code,
        row.node,
        row.queue,
        row.start_time,
        exit_code=row.exit_code,
        reason=reason,
        message=row.message,
    )


def open_lsf(settings: LsfSettings) -> SpooledBackend:
    """Open LSF by its commands; times come as UTC."""
    settings = replace(settings, env={"TZ": "UTC", "LC_ALL": "C.UTF-8", **settings.env})
    return SpooledBackend(settings.host(), settings, LsfDialect(settings))


plugin = BackendPlugin(
    name="lsf",
    settings=LsfSettings,
    open=open_lsf,
    credential_options={"key": "ssh_key"},
    credential_environment="env",
)
