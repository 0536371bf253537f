"""Backend "grid-engine": Sun Grid Engine, Son of Grid Engine and their relatives, by DRMAA and commands."""

import ctypes.util
import importlib.util
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from khomas.scheduler.backends import drmaa_worker
from khomas.scheduler.backends.grid_engine_answers import (
    Account,
    parse_accounting,
    parse_jobs,
    parse_queues,
    state_of,
)
from khomas.scheduler.backends.interface import BackendPlugin, ComputeResource, State, Submitted, Usage
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

Read = TypeVar("Read")
MIB = 1 << 20
# Words of one qdel: far below what one command may have.
_IDS_PER_COMMAND = 500
_SCRIPT = """#!/bin/sh
case "${{SGE_TASK_ID:-undefined}}" in
  undefined) KHOMAS_INDEX=0 ;;
  *) KHOMAS_INDEX=$((SGE_TASK_ID - 1)) ;;
esac
export KHOMAS_INDEX
{runs}
"""
_NATIVE = r"(?m)^(\d+)(?:\.1-\d+:1)?$"
# The master was never reached, or it said no.
_UNREACHED = r"Connection refused|No route to host|no DRMAA session"
_DENIED = r"Unable to run job: (?!.*(?:failed receiving|got read error|timeout))|DeniedByDrmException|InvalidArgument"
_FULL = re.compile(r"[Oo]nly \d+ jobs are allowed per|TryLater")
_OPTION = re.compile(r"[\w.:/@+=,*|&!-]+")
_ENFORCED = 37
_KILLED = 100
_RAN = frozenset({0, 12, 13, 14, 15, 17, 24, 25, 30, _KILLED})


@dataclass(frozen=True, slots=True, kw_only=True)
class GridEngineSettings(SpoolSettings):
    """Where Grid Engine is and how jobs ask for what they need.

    Name `tools`: other batch systems have commands of the same names.
    """

    # SGE_ROOT and SGE_CELL.
    root: Path
    cell: str = "default"
    # None = as the services database of the host says.
    qmaster_port: int | None = None
    execd_port: int | None = None
    # For jobs that name no queue; empty = Grid Engine decides.
    queue: str = ""
    # For jobs of more than one core.
    parallel_environment: str = "smp"
    # Complex by which memory is asked for, per core: "h_vmem", "mem_free"; empty = the wrapper's limit alone.
    memory_resource: str = ""
    # Beyond the wall time of a job, for bringing files in and out.
    margin_seconds: float = 300.0
    # libdrmaa.so, 75 times faster than qsub where jobs differ in what they ask for; empty = qsub.
    drmaa_library: str = ""
    # How much of the end of the accounting file is looked at.
    accounting_bytes: int = 64 * MIB

    @property
    def commands_env(self) -> dict[str, str]:
        """What the commands need; times come as UTC."""
        ports = {"SGE_QMASTER_PORT": self.qmaster_port, "SGE_EXECD_PORT": self.execd_port}
        return {
            "SGE_ROOT": str(self.root),
            "SGE_CELL": self.cell,
            **{name: str(port) for name, port in ports.items() if port is not None},
            "TZ": "UTC",
            "LC_ALL": "C.UTF-8",
            **self.env,
        }


class GridEngineDialect:
    """The commands of Grid Engine and their answers."""

    kind = "grid-engine"
    native_options = frozenset({"parallel_environment", "priority", "project", "reserve", "resources"})
    can_hold = True
    by_process = False
    avoids_nodes = True

    def __init__(self, settings: GridEngineSettings) -> None:
        self._settings = settings
        self.margin_seconds = settings.margin_seconds
        # The worker runs with this Python, so on this machine only.
        there = not settings.ssh and importlib.util.find_spec("drmaa") is not None
        self._by_drmaa = there and settings.drmaa_library != "" and Path(settings.drmaa_library).exists()

    def submission(self, needs: Needs, runs: str) -> Submission:
        """How to hand over: one array for all, by DRMAA where its library is there."""
        options, script = self._options(needs), _SCRIPT.format(runs=runs)
        refused = f"{_UNREACHED}|{_DENIED}|{_FULL.pattern}"
        if self._by_drmaa:
            words = ["drmaa", "@BATCH@", "@COUNT@", "@SCRIPT@", " ".join([*options, "-b", "y", "-shell", "n"])]
            return Submission(script, words, words, _NATIVE, refused, helper=self._worker())
        qsub = [self._tool("qsub"), "-terse", "-N", "@BATCH@", "-wd", "/", "-j", "y", "-o", "/dev/null"]
        qsub += ["-S", "/bin/sh", *options]
        return Submission(script, [*qsub, "@SCRIPT@"], [*qsub, "-t", "1-@COUNT@", "@SCRIPT@"], _NATIVE, refused)

    def _worker(self) -> list[str]:
        variables = [f"DRMAA_LIBRARY_PATH={self._settings.drmaa_library}"]
        # Else: "cannot allocate memory in static TLS block".
        if (allocator := ctypes.util.find_library("jemalloc")) is not None:
            variables.append(f"LD_PRELOAD={allocator}")
        return ["env", *variables, sys.executable, drmaa_worker.__file__]

    def _tool(self, name: str) -> str:
        return self._settings.tool(name)

    def _options(self, needs: Needs) -> list[str]:
        # -r n: who runs a job again is the scheduler. -notify: SIGUSR2 before SIGKILL, so that the wrapper can end it.
        native, slots = needs.native, whole_cores(needs)
        options = ["-r", "n", "-notify"]
        if slots > 1:
            environment = native.get("parallel_environment", self._settings.parallel_environment)
            options += ["-pe", _word("parallel_environment", environment), str(slots)]
        if needs.wall_time_s:
            options += ["-l", f"h_rt={math.ceil(needs.wall_time_s + self._settings.margin_seconds)}"]
        if needs.memory_bytes and self._settings.memory_resource:
            size = math.ceil(needs.memory_bytes / slots / MIB)
            options += ["-l", f"{self._settings.memory_resource}={size}M"]
        if queue := needs.queue or self._settings.queue:
            options += ["-q", _word("queue", queue)]
        if needs.avoid_nodes:
            options += ["-l", _word("h", "h=" + "&".join(f"!{node}" for node in needs.avoid_nodes))]
        if "project" in native:
            options += ["-P", _word("project", native["project"])]
        if "priority" in native:
            options += ["-p", str(int(native["priority"]))]
        if native.get("reserve"):
            options += ["-R", "y"]
        return [*options, *_resources(native.get("resources", {}))]

    def refusal(self, answer: Answer) -> Refusal:
        """Say what a failed submission means."""
        said = " ".join((answer.stderr or answer.stdout).split())[-500:]
        if re.search(_UNREACHED, said) or _FULL.search(said):
            return Refusal(Submitted.THROTTLED, said, timedelta(seconds=30))
        return Refusal(Submitted.REJECTED, said)

    def element(self, native: str, index: int) -> str:
        """Tasks are counted from 1."""
        return f"{native}.{index + 1}"

    def whole(self, native_id: str) -> tuple[str, int]:
        """The job of a task."""
        number, _, task = native_id.partition(".")
        return number, int(task) - 1 if task else 0

    def status(self, natives: Sequence[str]) -> list[list[str]]:
        """One command for all jobs, arrays unfolded."""
        return [[self._tool("qstat"), "-xml", "-g", "d"]]

    def statuses(self, answers: Sequence[Answer]) -> Mapping[str, Status]:
        """Read qstat."""
        return {
            row.native_id: Status(
                state_of(row.code),
                row.code,
                row.node,
                row.queue,
                row.start_time,
                reason="INFRA_ENVIRONMENT" if "E" in row.code else "",
                message=f"qstat -j {row.native_id.partition('.')[0]} says why" if "E" in row.code else "",
            )
            for row in _read(parse_jobs, answers[0])
        }

    def accounting(self, native_ids: Sequence[str]) -> list[list[str]]:
        """Look for the records of these jobs."""
        numbers = sorted({self.whole(native_id)[0] for native_id in native_ids})
        return [self._accounting_lines("([^:]*:){5}", numbers)] if numbers else []

    def _accounting_lines(self, before: str, values: Iterable[str]) -> list[str]:
        """Lines of the accounting file with one of these values, from its end; qacct would read all of it."""
        look = 'tail -c "$1" "$2" | grep -E "$3" || :'
        path = f"{self._settings.root}/{self._settings.cell}/common/accounting"
        pattern = f"^{before}({'|'.join(values)}):"
        return ["sh", "-c", look, "accounting", str(self._settings.accounting_bytes), path, pattern]

    def accounts(self, answers: Sequence[Answer]) -> Mapping[str, tuple[Status, Usage]]:
        """Read the accounting file."""
        records = (account for answer in answers for account in parse_accounting(answer.text().splitlines()))
        return {account.native_id: (_ended(account), account.usage) for account in records}

    def search(self, batches: Sequence[str]) -> list[list[str]]:
        """Look among the jobs that are there and among those that were."""
        return [[self._tool("qstat"), "-xml", "-g", "d"], self._accounting_lines("([^:]*:){4}", batches)]

    def found(self, answers: Sequence[Answer]) -> Mapping[str, str]:
        """Numbers of jobs by their names."""
        rows = [(row.name, row.native_id) for row in _read(parse_jobs, answers[0])]
        rows += [(one.name, one.native_id) for one in parse_accounting(answers[1].text().splitlines())]
        return {name: self.whole(native_id)[0] for name, native_id in rows}

    def cancel(self, native_ids: Sequence[str], *, running: bool) -> list[list[str]]:
        """Delete; those that are not there are told about and no error."""
        return [[self._tool("qdel"), *part] for part in _parts(native_ids)]

    def hold(self, native_ids: Sequence[str], on: bool) -> list[list[str]]:
        """Hold or release."""
        return [[self._tool("qhold" if on else "qrls"), *part] for part in _parts(native_ids)]

    def resources(self) -> list[list[str]]:
        """Queues as a whole, and their instances on the hosts."""
        return [[self._tool("qstat"), "-g", "c", "-xml"], [self._tool("qhost"), "-q", "-xml"]]

    def queues(self, answers: Sequence[Answer]) -> list[ComputeResource]:
        """Read what resources() asked for."""
        hosts = answers[1].text()
        names = [name.partition("@")[0] for name in self._settings.queue.split(",")]
        return with_defaults(_read(lambda summary: parse_queues(summary, hosts), answers[0]), names)


def _read(parse: Callable[[str], Read], answer: Answer) -> Read:
    """Parse what a command printed as XML. Raises UnreadableAnswerError."""
    text = answer.text()
    try:
        return parse(text)
    except SyntaxError as error:
        raise UnreadableAnswerError(f"no whole XML: {error}") from None


def _resources(wanted: object) -> list[str]:
    """Complexes by name: `{"gpu": 1}`. Raises ValueError."""
    if not isinstance(wanted, Mapping):
        raise ValueError(f"resources are names with values, not {wanted!r}")
    return [word for name, value in wanted.items() for word in ("-l", _word("resources", f"{name}={value}"))]


def _word(option: str, value: object) -> str:
    """Only what cannot be mistaken for another option. Raises ValueError."""
    text = str(value)
    if text.startswith("-") or not _OPTION.fullmatch(text):
        raise ValueError(f"{option} cannot be {text!r}")
    return text


def _parts(native_ids: Sequence[str]) -> Iterable[Sequence[str]]:
    return (native_ids[start : start + _IDS_PER_COMMAND] for start in range(0, len(native_ids), _IDS_PER_COMMAND))


def _ended(account: Account) -> Status:
    """How a job ended that left no exit record, in the words of sge_status(5)."""
    state, reason, message = State.FAILED, "", f"failed {account.failed}, exit_status {account.exit_status}"
    if account.failed == 0 and account.exit_status == 0:
        state = State.SUCCEEDED
    elif account.failed == _ENFORCED:
        reason, message = "LIMIT_WALL", "Grid Engine ended it at its limit of time or memory"
    elif account.failed not in _RAN:
        reason = "INFRA_ENVIRONMENT"
    return Status(
        state,
        f"failed {account.failed}",
        account.node,
        account.queue,
        account.start_time,
        exit_code=account.exit_status,
        reason=reason,
        message=message,
    )


def open_grid_engine(settings: GridEngineSettings) -> SpooledBackend:
    """Open Grid Engine by its commands."""
    settings = replace(settings, env=settings.commands_env)
    return SpooledBackend(settings.host(), settings, GridEngineDialect(settings))


plugin = BackendPlugin(
    name="grid-engine",
    settings=GridEngineSettings,
    open=open_grid_engine,
    credential_options={"key": "ssh_key"},
    credential_environment="env",
)
