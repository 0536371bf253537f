"""Rows of jobs and attempts as values."""

import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple, TypeAlias

from khomas.api.scheduler.v1.state_pb2 import DesiredState, JobState, Reason

FINAL: frozenset["State"] = frozenset(
    {JobState.JOB_STATE_SUCCEEDED, JobState.JOB_STATE_FAILED, JobState.JOB_STATE_CANCELLED}
)
State: TypeAlias = JobState.ValueType
ReasonCode: TypeAlias = Reason.ValueType
Desired: TypeAlias = DesiredState.ValueType
# A moment as the driver gives it: microseconds since 1970 on SQLite.
Stored: TypeAlias = datetime | int

# Where the trace id is in a W3C traceparent.
TRACE_ID = slice(3, 35)
# Nothing has been handed to a backend yet.
WAITING = frozenset({JobState.JOB_STATE_DRAFT, JobState.JOB_STATE_PENDING, JobState.JOB_STATE_STAGING})
# Something has, and it has not ended.
ACTIVE = range(JobState.JOB_STATE_SUBMITTING, JobState.JOB_STATE_STALLED + 1)


# Named tuples: a step of a job copies its row a few times, which takes a dataclass of so many fields 20 times as long.
class Job(NamedTuple):
    """A row of the table `job`; the fields stand in the order of its columns."""

    uid: str
    parent: str
    index: int  # type: ignore[assignment]  # nobody looks for items of this tuple
    spec: str
    state: State
    reason: ReasonCode
    message: str
    since: datetime
    desired: Desired
    attempt: int
    counted: int
    version: int
    application_status: str
    due: datetime | None
    next_attempt_time: datetime | None
    start_after: datetime | None
    deadline: datetime | None
    waits: int
    memory_factor: float
    wall_factor: float
    priority: int
    owner: str
    origin: str
    display_name: str
    tags: dict[str, str]
    backend: str
    parameters: dict[str, str]
    merges: str
    create_time: datetime
    update_time: datetime
    end_time: datetime | None
    total: int
    made: int
    rest_state: State
    rest_reason: ReasonCode
    max_running: int
    share: str = ""
    retain_s: int | None = None
    traceparent: str = ""

    @property
    def name(self) -> str:
        """Resource name."""
        return f"jobs/{self.uid}"

    @property
    def trace_id(self) -> str:
        """Trace of the call that submitted it."""
        return self.traceparent[TRACE_ID]

    @property
    def final(self) -> bool:
        """Whether it never changes any more."""
        return self.state in FINAL

    @property
    def waiting(self) -> bool:
        """Whether nothing has been handed to a backend, so that it can end at once."""
        return self.state in WAITING

    @property
    def is_array(self) -> bool:
        """Whether it is the parent of children."""
        return self.total > 0

    @property
    def unmade(self) -> int:
        """How many children have no row."""
        return self.total - self.made

    def values(self) -> dict[str, Any]:
        """The row."""
        return self._asdict()


class Summary(NamedTuple):
    """What lists show of a job; the fields stand in the order of the query's columns.

    Moments are as the database has them, which saves a third of a page's time.
    """

    uid: str
    parent: str
    index: int  # type: ignore[assignment]  # nobody looks for items of this tuple
    spec: str
    state: State
    reason: ReasonCode
    message: str
    since: Stored
    desired: Desired
    attempt: int
    version: int
    application_status: str
    next_attempt_time: Stored | None
    owner: str
    origin: str
    # JSON.
    written_parameters: str
    merges: str
    create_time: Stored
    update_time: Stored
    end_time: Stored | None
    total: int
    made: int
    rest_state: State
    rest_reason: ReasonCode
    traceparent: str

    @property
    def trace_id(self) -> str:
        """Trace of the call that submitted it."""
        return self.traceparent[TRACE_ID]

    @property
    def parameters(self) -> dict[str, str]:
        """Values of the splitter, as text."""
        found: dict[str, str] = {} if self.written_parameters == "{}" else json.loads(self.written_parameters)
        return found

    @property
    def is_array(self) -> bool:
        """Whether it is the parent of children."""
        return self.total > 0


class Attempt(NamedTuple):
    """A row of the table `attempt`; the fields stand in the order of its columns."""

    uid: str
    job: str
    number: int
    backend: str
    native_id: str
    queue: str
    node: str
    state: State
    reason: ReasonCode
    message: str
    native_state: str
    exit_code: int | None
    signal: int | None
    usage: dict[str, Any]
    outputs: list[dict[str, Any]]
    record: dict[str, Any]
    upload: str
    inputs: list[str]
    script_sha256: str
    create_time: datetime
    submit_time: datetime | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    collected: bool = False

    @property
    def token(self) -> str:
        """What names it in the batch system."""
        return token_of(self.uid)

    @property
    def final(self) -> bool:
        """Whether it never changes any more."""
        return self.state in FINAL

    def values(self) -> dict[str, Any]:
        """The row."""
        return self._asdict()


@dataclass(frozen=True, slots=True)
class Dependency:
    """A row of the table `dependency`."""

    job: str
    target: str
    condition: int
    min_fraction: float
    kept: bool = False


@dataclass(frozen=True, slots=True)
class Counts:
    """Children of an array by state and reason."""

    numbers: dict[tuple[State, ReasonCode], int] = field(default_factory=dict)

    def of(self, *states: int) -> int:
        """How many are in one of these states."""
        return sum(number for (state, _), number in self.numbers.items() if state in states)

    @property
    def total(self) -> int:
        """How many there are."""
        return sum(self.numbers.values())


def token_of(attempt_uid: str) -> str:
    """32 characters, as some batch systems take no more."""
    return attempt_uid.replace("-", "")


def uid_of_token(token: str) -> str:
    """Undo `token_of`."""
    return f"{token[:8]}-{token[8:12]}-{token[12:16]}-{token[16:20]}-{token[20:]}"
