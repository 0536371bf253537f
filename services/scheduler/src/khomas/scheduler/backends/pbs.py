"""Backend "pbs": PBS Professional, OpenPBS and Torque. Emulated: tried on documented answers alone."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from khomas.scheduler.backends.interface import BackendPlugin, ComputeResource, Submitted, Usage
from khomas.scheduler.backends.pbs_answers import Row, parse_defaults, parse_json, parse_queues, parse_xml
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
# What a job may ask for: its name, and how qsub calls it.
_OPTIONS = {"account": "-A", "priority": "-p", "project": "-P", "place": "-l place="}
_SCRIPT = """#!/bin/sh
KHOMAS_INDEX=${{{index}:-0}}
{runs}
"""
_NATIVE = r"(?m)^(\d+(?:\[\])?[\w.-]*)$"
_UNREACHED = r"cannot connect to server|Connection refused|No route to host"
_REFUSED = rf"qsub: (?!.*(?i:timed out|timeout|end of file))|{_UNREACHED}"
_FULL = re.compile(r"(?i)would exceed .*limit|max_queued|limit on .*jobs|queue is full")
# qstat ends so when some jobs are not there (153) or have ended (35); what it prints is good all the same.
_PARTIAL = frozenset({0, 35, 153})
_WORD = re.compile(r"[\w.:/@+=,*|&!-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class PbsSettings(SpoolSettings):
    """PBS on this machine, or on a submit host behind ssh. Name `tools`: Grid Engine has commands of the same names."""

    # Torque speaks XML, counts cores as ppn and has other letters for arrays.
    torque: bool = False
    # The server keeps jobs that have ended (`job_history_enable`).
    history: bool = True
    # For jobs that name no queue; empty = PBS decides.
    queue: str = ""
    # Beyond the wall time of a job, for bringing files in and out.
    margin_seconds: float = 300.0


class PbsDialect:
    """The commands of PBS and their answers."""

    kind = "pbs"
    native_options = frozenset(_OPTIONS)
    can_hold = True
    by_process = False
    avoids_nodes = False

    def __init__(self, settings: PbsSettings) -> None:
        self._settings = settings
        self.margin_seconds = settings.margin_seconds

    def submission(self, needs: Needs, runs: str) -> Submission:
        """One array for all; PBS copies the script."""
        qsub = [self._tool("qsub"), "-N", "@BATCH@", "-j", "oe", "-o", "/dev/null", "-r", "n", "-S", "/bin/sh"]
        qsub += [*self._limits(needs), *self._chosen(needs)]
        array = ["-t", "0-@LAST@"] if self._settings.torque else ["-J", "0-@LAST@"]
        index = "PBS_ARRAYID" if self._settings.torque else "PBS_ARRAY_INDEX"
        script = _SCRIPT.format(index=index, runs=runs)
        return Submission(script, [*qsub, "@SCRIPT@"], [*qsub, *array, "@SCRIPT@"], _NATIVE, _REFUSED)

    def _limits(self, needs: Needs) -> list[str]:
        cores, memory = whole_cores(needs), math.ceil(needs.memory_bytes / MIB) + 64 if needs.memory_bytes else 0
        if self._settings.torque:
            limits = [f"nodes=1:ppn={cores}", *([f"mem={memory}mb"] if memory else [])]
        else:
            limits = [f"select=1:ncpus={cores}{f':mem={memory}mb' if memory else ''}"]
        if needs.wall_time_s:
            limits.append(f"walltime={math.ceil(needs.wall_time_s + self._settings.margin_seconds)}")
        return [word for limit in limits for word in ("-l", limit)]

    def _chosen(self, needs: Needs) -> list[str]:
        queue = needs.queue or self._settings.queue
        words = ["-q", _word("queue", queue)] if queue else []
        for name, value in needs.native.items():
            option, _, resource = _OPTIONS[name].partition(" ")
            words += [option, f"{resource}{_word(name, value)}"]
        return words

    def _tool(self, name: str) -> str:
        return self._settings.tool(name)

    def refusal(self, answer: Answer) -> Refusal:
        """Tell a full queue and a server that is away from a refusal."""
        said = " ".join(answer.stderr.split()) or f"qsub ended with {answer.exit_code}"
        later = _FULL.search(said) or re.search(_UNREACHED, said)
        return Refusal(Submitted.THROTTLED if later else Submitted.REJECTED, said)

    def element(self, native: str, index: int) -> str:
        """`12[3].pbs` of `12[].pbs`."""
        return native.replace("[]", f"[{index}]", 1)

    def whole(self, native_id: str) -> tuple[str, int]:
        """`12[].pbs` and 3."""
        match = re.search(r"\[(\d+)\]", native_id)
        return (native_id, 0) if match is None else (native_id.replace(match[0], "[]", 1), int(match[1]))

    def status(self, natives: Sequence[str]) -> list[list[str]]:
        """All elements of these arrays."""
        if self._settings.torque:
            return [[self._tool("qstat"), "-t", "-x"]]
        history = ["-x"] if self._settings.history else []
        return [[self._tool("qstat"), *history, "-t", "-f", "-F", "json", *natives]]

    def statuses(self, answers: Sequence[Answer]) -> Mapping[str, Status]:
        """By native id."""
        return {row.native_id: _status(row) for row in self._rows(answers)}

    def _rows(self, answers: Sequence[Answer]) -> list[Row]:
        answer = answers[0]
        if answer.exit_code not in _PARTIAL:
            answer.text()
        try:
            return parse_xml(answer.stdout) if self._settings.torque else parse_json(answer.stdout)
        except (SyntaxError, ValueError) as error:
            raise UnreadableAnswerError(f"qstat: {error}") from None

    def accounting(self, native_ids: Sequence[str]) -> list[list[str]]:
        """What the history tells."""
        if self._settings.torque or not self._settings.history or not native_ids:
            return []
        return self.status(list(dict.fromkeys(self.whole(one)[0] for one in native_ids)))

    def accounts(self, answers: Sequence[Answer]) -> Mapping[str, tuple[Status, Usage]]:
        """By native id."""
        return {row.native_id: (_status(row), row.usage) for row in self._rows(answers) if row.usage is not None}

    def search(self, batches: Sequence[str]) -> list[list[str]]:
        """Look through all jobs: qstat knows no names."""
        if self._settings.torque:
            return [[self._tool("qstat"), "-x"]]
        history = ["-x"] if self._settings.history else []
        return [[self._tool("qstat"), *history, "-t", "-f", "-F", "json"]]

    def found(self, answers: Sequence[Answer]) -> Mapping[str, str]:
        """Jobs and arrays by their names; Torque appends the index to the name of an element."""
        return {re.sub(r"-\d+$", "", row.name): self.whole(row.native_id)[0] for row in self._rows(answers)}

    def cancel(self, native_ids: Sequence[str], *, running: bool) -> list[list[str]]:
        """Delete: SIGTERM, later SIGKILL."""
        return self._for_each("qdel", native_ids)

    def hold(self, native_ids: Sequence[str], on: bool) -> list[list[str]]:
        """Hold or release."""
        return self._for_each("qhold" if on else "qrls", native_ids)

    def _for_each(self, tool: str, native_ids: Sequence[str]) -> list[list[str]]:
        starts = range(0, len(native_ids), _IDS_PER_COMMAND)
        return [[self._tool(tool), *native_ids[start : start + _IDS_PER_COMMAND]] for start in starts]

    def resources(self) -> list[list[str]]:
        """Queues, nodes and the server; Torque has no form of them that is made to be read by programs."""
        if self._settings.torque:
            return []
        json = ["-F", "json"]
        qstat = self._tool("qstat")
        return [[qstat, "-Q", "-f", *json], [self._tool("pbsnodes"), "-a", *json], [qstat, "-B", "-f", *json]]

    def queues(self, answers: Sequence[Answer]) -> list[ComputeResource]:
        """The queues; of Torque, that there is one."""
        if self._settings.torque:
            return [ComputeResource(queue=self._settings.queue)]
        try:
            queues, nodes = answers[0].text(), answers[1].text()
            names = parse_defaults(queues, answers[2].stdout, self._settings.queue)
            return with_defaults(parse_queues(queues, nodes), names)
        except ValueError as error:
            raise UnreadableAnswerError(f"no JSON: {error}") from None


def _status(row: Row) -> Status:
    return Status(row.state, row.code, row.node, row.queue, row.start_time, exit_code=row.exit_status)


def _word(option: str, value: object) -> str:
    """Only what cannot be mistaken for another option. Raises ValueError."""
    text = str(value)
    if (text.startswith("-") and option != "priority") or not _WORD.fullmatch(text):
        raise ValueError(f"{option} cannot be {text!r}")
    return text


def open_pbs(settings: PbsSettings) -> SpooledBackend:
    """Open PBS by its commands; times come as UTC."""
    settings = replace(settings, env={"TZ": "UTC", "LC_ALL": "C.UTF-8", **settings.env})
    return SpooledBackend(settings.host(), settings, PbsDialect(settings))


plugin = BackendPlugin(
    name="pbs",
    settings=PbsSettings,
    open=open_pbs,
    credential_options={"key": "ssh_key"},
    credential_environment="env",
)
