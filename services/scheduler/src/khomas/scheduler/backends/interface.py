"""What a backend is: the way to one batch or grid system."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import IntEnum, StrEnum
from typing import Any, Generic, Protocol, TypeVar


@dataclass(frozen=True, slots=True)
class SubmitItem:
    """One attempt to hand over. Backends read resources from the manifest (see wrapper/README.md)."""

    # At most 32 characters; names the attempt in the batch system for ever.
    token: str
    # The wrapper's `job.json`.
    manifest: Mapping[str, Any]
    queue: str = ""
    # Options in the words of the batch system.
    native: Mapping[str, Any] = field(default_factory=dict)
    # Where it is not to run; none where `avoids_nodes` is False.
    avoid_nodes: Sequence[str] = ()


class Submitted(StrEnum):
    """What became of a submission."""

    # It is in the batch system, durably.
    ACCEPTED = "ACCEPTED"
    # It is not and will not be: change something first.
    REJECTED = "REJECTED"
    # It is not: the system takes no more now. Try again after `retry_after`.
    THROTTLED = "THROTTLED"
    # It may be: ask `find` before anything else.
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class SubmitOutcome:
    """What became of one SubmitItem."""

    token: str
    kind: Submitted
    native_id: str = ""
    message: str = ""
    retry_after: timedelta | None = None


class Seen(StrEnum):
    """What a backend answered when asked for a job."""

    PRESENT = "PRESENT"
    # It answered for all jobs and this one was not there.
    ABSENT = "ABSENT"
    # It did not answer for this one: says nothing about the job.
    NOT_ANSWERED = "NOT_ANSWERED"


class State(IntEnum):
    """State of an attempt as far as a backend can tell; numbers of `JobState` in the contract."""

    UNKNOWN = 0
    QUEUED = 5
    RUNNING = 7
    SUSPENDED = 8
    SUCCEEDED = 20
    FAILED = 21
    CANCELLED = 22

    @property
    def final(self) -> bool:
        """Whether it never changes any more."""
        return self >= State.SUCCEEDED


@dataclass(frozen=True, slots=True)
class Usage:
    """Resources used by one attempt."""

    wall_s: float = 0.0
    cpu_user_s: float = 0.0
    cpu_system_s: float = 0.0
    max_memory_bytes: int = 0
    max_disk_bytes: int = 0
    read_bytes: int = 0
    write_bytes: int = 0
    events: int = 0


@dataclass(frozen=True, slots=True)
class Observation:
    """One look at one job. A final PRESENT one carries the wrapper's exit record when there is one."""

    token: str
    native_id: str
    seen: Seen
    state: State = State.UNKNOWN
    # In the words of the batch system.
    native_state: str = ""
    node: str = ""
    queue: str = ""
    start_time: datetime | None = None
    # The wrapper's `exit.json`: it decides about success. None with a final state = judge by the native state.
    record: Mapping[str, Any] | None = None
    # What a running job has used so far, when that was asked for and the backend can tell.
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class PollResult:
    """Answer of a poll; `cursor` goes into the next one."""

    observations: list[Observation]
    # False = some jobs were not answered for.
    complete: bool
    cursor: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an order about one job; an ABSENT one is a success."""

    native_id: str
    done: bool
    message: str = ""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of what a job printed; `size` is how much there is by now."""

    offset: int
    data: bytes
    size: int


@dataclass(frozen=True, slots=True)
class RenderedScript:
    """What would be handed over, as a file that a person can run."""

    token: str
    name: str
    content: str


@dataclass(frozen=True, slots=True)
class ComputeResource:
    """One queue, as it is now. None = not known, never a sentinel."""

    queue: str
    cpu_milli: int | None = None
    # The most that one job gets; None = all of them.
    max_cpu_milli: int | None = None
    free_cpu_milli: int | None = None
    max_memory_bytes: int | None = None
    max_wall_time: timedelta | None = None
    running_jobs: int | None = None
    queued_jobs: int | None = None
    message: str = ""
    # Until a new job starts, where the system can tell.
    expected_wait: timedelta | None = None
    # What jobs find there: "x86_64-el9".
    platforms: Sequence[str] = ()
    power_per_core_hs23: float | None = None
    # Closed by those who run it.
    closed: bool = False
    # Jobs that name no queue go there; where there are several such, the system chooses.
    is_default: bool = False


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do. What is False is refused with `NotSupportedError`."""

    kind: str
    # Entries in one submit, find, poll or cancel.
    max_batch: int = 1000
    min_poll_interval: timedelta = timedelta(seconds=30)
    # A poll with a cursor answers with changes only.
    incremental_poll: bool = False
    hold: bool = False
    # Output of a running job can be read.
    peek: bool = False
    # A poll tells what running jobs have used so far.
    live_usage: bool = False
    # Job folders are on a disk that the service sees: outputs need no upload.
    shared_folder: bool = False
    enforces_memory: bool = True
    # What is asked for beyond the wall time of a job; limits of queues count it.
    wall_margin: timedelta = timedelta(0)
    # Jobs can be kept off nodes.
    avoids_nodes: bool = False
    # Options in the words of the batch system that a job may give; all others are refused by name.
    native_options: frozenset[str] = frozenset()


class NotSupportedError(Exception):
    """The backend cannot do this and says so in its capabilities."""


class Backend(Protocol):
    """The way to one batch or grid system.

    Every call takes many ids (up to `max_batch`) and has an outcome an id, in the same order. An exception means that
    the whole call did not happen or that its effect is unknown. A backend keeps nothing that the service needs after
    a restart.
    """

    @property
    def capabilities(self) -> Capabilities: ...

    def render(self, items: Sequence[SubmitItem]) -> list[RenderedScript]:
        """Say what submit would hand over; no effect, secrets left out."""

    async def submit(self, items: Sequence[SubmitItem]) -> list[SubmitOutcome]:
        """Hand over; a token that is there already is ACCEPTED and not started again."""

    async def find(self, tokens: Sequence[str]) -> dict[str, str]:
        """Native ids of the tokens that the system knows, after a crash or an UNKNOWN."""

    async def poll(self, ids: Sequence[str], cursor: str = "", measure: Collection[str] = ()) -> PollResult:
        """Look. Without a cursor an observation an id; with one, when incremental, those that changed since.

        Without a cursor and with `live_usage`, the ids in `measure` that run also tell what they have used so far. For
        all others nothing may be read for that: it can cost a file each.
        """

    async def cancel(self, ids: Sequence[str], grace: timedelta) -> list[Outcome]:
        """Want jobs to end: SIGTERM, after `grace` SIGKILL. Done when the order is durable; poll tells the rest."""

    async def hold(self, ids: Sequence[str], on: bool) -> list[Outcome]:
        """Keep waiting jobs from starting, or let them go on."""

    async def peek(self, native_id: str, stream: str, offset: int, limit: int) -> Chunk:
        """Read "stdout" or "stderr", also while the job runs; a negative offset counts from the end."""

    async def fetch_output(self, native_id: str, location: str, target: str) -> None:
        """Bring one file of the exit record (`outputs[].location`) to a path on this machine."""

    async def purge(self, ids: Sequence[str]) -> list[Outcome]:
        """Forget ended jobs and delete what they left with the backend; refuses those that have not ended."""

    async def usage(self, ids: Sequence[str]) -> dict[str, Usage]:
        """Accounting of ended jobs; those not known (yet) are left out."""

    async def list_resources(self) -> list[ComputeResource]:
        """The queues as they are now."""

    async def aclose(self) -> None:
        """Let go of connections. Jobs go on."""


SettingsT = TypeVar("SettingsT")


@dataclass(frozen=True, slots=True)
class BackendPlugin(Generic[SettingsT]):
    """Entry point in the group `khomas.scheduler.backends`."""

    # Kind of backend: "slurm".
    name: str
    settings: type[SettingsT]
    open: Callable[[SettingsT], Backend]
    # Settings that take the files of a credential, by what its kind calls them: {"proxy": "proxy_file"}.
    credential_options: Mapping[str, str] = field(default_factory=dict)
    # Setting that takes the environment of its commands, where that is how they find a credential.
    credential_environment: str = ""
