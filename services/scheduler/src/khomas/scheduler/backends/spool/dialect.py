"""What a batch system that is driven by commands has to tell."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

from khomas.scheduler.backends.interface import ComputeResource, State, SubmitItem, Submitted, Usage


@dataclass(frozen=True, slots=True)
class Needs:
    """What all jobs of one submission ask for; jobs that differ in this go separately."""

    cpu_milli: int = 1000
    # 0 = nothing said.
    memory_bytes: int = 0
    wall_time_s: float = 0.0
    cpu_time_s: float = 0.0
    disk_bytes: int = 0
    queue: str = ""
    native: Mapping[str, Any] = field(default_factory=dict)
    avoid_nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Submission:
    """How some jobs are handed over.

    In the words of the commands and in the script stand for what is known at the host: `@BATCH@` name of the
    submission, `@FOLDER@` its folder, `@SCRIPT@` the script, `@TOKEN@` the first token, `@COUNT@` and `@LAST@` number
    of jobs and index of the last one, `@SPOOL@`.
    """

    script: str
    # Command for one job; with `each` it is run for every job.
    single: Sequence[str]
    # Command for an array; None = every job goes by itself.
    array: Sequence[str] | None
    # Where the native id stands in the answer: group 1.
    native: str
    # What the answer has when the jobs are certainly not in the batch system.
    refused: str
    # A program that stands for the commands: it takes the words of one a line as JSON, and answers a line with
    # `exit_code`, `stdout` and `stderr`. It is started once for all submissions of a call.
    helper: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Status:
    """What a batch system tells of one job."""

    state: State
    # In its own words.
    native_state: str = ""
    node: str = ""
    queue: str = ""
    start_time: datetime | None = None
    end_time: datetime | None = None
    exit_code: int | None = None
    # Name of the wrapper's reason when the batch system ended the job itself: "LIMIT_MEMORY".
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a submission did not arrive."""

    kind: Submitted
    message: str
    retry_after: timedelta | None = None


class UnreadableAnswerError(Exception):
    """A command did not answer the question."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How a command of the batch system ended."""

    exit_code: int | None
    stdout: str
    stderr: str

    def text(self) -> str:
        """What it printed. Raises `UnreadableAnswerError` when it failed."""
        if self.exit_code != 0:
            said = " ".join(self.stderr.split()) or f"exit code {self.exit_code}"
            raise UnreadableAnswerError(said[-500:])
        return self.stdout


class Dialect(Protocol):
    """The commands of one batch system and their answers. Pure: it runs nothing."""

    kind: str
    native_options: frozenset[str]
    can_hold: bool
    # Whether a job is known by its process on the host rather than by a status command.
    by_process: bool
    # Whether jobs can be kept off nodes.
    avoids_nodes: bool
    # Asked for beyond the wall time of a job.
    margin_seconds: float

    def submission(self, needs: Needs, runs: str) -> Submission:
        """How to hand over; `runs` is the shell line that runs the job of this element, given `$KHOMAS_INDEX`.

        Raises ValueError for what cannot be asked for.
        """

    def refusal(self, answer: Answer) -> Refusal:
        """Say what a failed submission means."""

    def element(self, native: str, index: int) -> str:
        """Native id of one element of an array."""

    def whole(self, native_id: str) -> tuple[str, int]:
        """The array of an element and its index, from 0; a job by itself is element 0."""

    def status(self, natives: Sequence[str]) -> list[list[str]]:
        """Commands that tell of all jobs at once."""

    def statuses(self, answers: Sequence[Answer]) -> Mapping[str, Status]:
        """By native id. Raises `UnreadableAnswerError`."""

    def accounting(self, native_ids: Sequence[str]) -> list[list[str]]:
        """Commands that tell of ended jobs; none = there is no accounting."""

    def accounts(self, answers: Sequence[Answer]) -> Mapping[str, tuple[Status, Usage]]:
        """By native id. Raises `UnreadableAnswerError`."""

    def search(self, batches: Sequence[str]) -> list[list[str]]:
        """Commands that find submissions by their names."""

    def found(self, answers: Sequence[Answer]) -> Mapping[str, str]:
        """Native ids by the names of the submissions. Raises `UnreadableAnswerError`."""

    def cancel(self, native_ids: Sequence[str], *, running: bool) -> list[list[str]]:
        """Commands that want jobs to end whose wrapper runs, or that wait; those that do not exist are no error."""

    def hold(self, native_ids: Sequence[str], on: bool) -> list[list[str]]:
        """Commands that hold waiting jobs, or let them go on."""

    def resources(self) -> list[list[str]]:
        """Commands that tell of queues."""

    def queues(self, answers: Sequence[Answer]) -> list[ComputeResource]:
        """The queues. Raises `UnreadableAnswerError`."""


def needs_of(item: SubmitItem) -> Needs:
    """What a job asks its batch system for, rounded upwards where that counts in wholes."""
    wanted = item.manifest.get("resources") or {}
    return Needs(
        cpu_milli=int(wanted.get("cpu_milli") or 1000),
        memory_bytes=int(wanted.get("memory_bytes") or 0),
        wall_time_s=float(wanted.get("wall_time_s") or 0),
        cpu_time_s=float(wanted.get("cpu_time_s") or 0),
        disk_bytes=int(wanted.get("disk_bytes") or 0),
        queue=item.queue,
        native=dict(sorted(item.native.items())),
        avoid_nodes=tuple(sorted(item.avoid_nodes)),
    )


def whole_cores(needs: Needs) -> int:
    """Cores, rounded up."""
    return max(1, math.ceil(needs.cpu_milli / 1000))


def names(candidates: Sequence[str]) -> list[str]:
    """Those that can be names of files."""
    return [name for name in candidates if name and "/" not in name and not name.startswith(".")]


def answer_of(command: Mapping[str, Any]) -> Answer:
    """What the keeper tells of a command."""
    return Answer(command["exit_code"], command["stdout"], command["stderr"])
