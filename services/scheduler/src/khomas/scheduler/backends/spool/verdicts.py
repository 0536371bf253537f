"""From what the batch system and the job folder tell to an observation: the exit record first, a disappearance last."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from khomas.scheduler.backends import received
from khomas.scheduler.backends.interface import Observation, Seen, State, Usage
from khomas.scheduler.backends.spool.dialect import Status
from khomas.scheduler.wrapper.khomas_job import REASONS


@dataclass(frozen=True, slots=True)
class Look:
    """What is known of one job."""

    native_id: str
    token: str
    record: Mapping[str, Any] | None
    # None = not in the batch system any more.
    status: Status | None
    # What a closer look at the job folder told.
    there: bool = True
    cancelled: bool = False
    started: Mapping[str, Any] | None = None
    judged: bool = False
    # So far.
    usage: Usage | None = None

    @property
    def gone(self) -> bool:
        """Whether the batch system has it no more, or calls it ended."""
        return self.status is None or self.status.state.final


def observation(look: Look, *, settled: bool) -> Observation:
    """Judge one job. Not `settled`: the record of a job that has ended may still be on its way over the network."""
    return _recorded(look, look.record) if look.record is not None else _unrecorded(look, settled)


def _unrecorded(look: Look, settled: bool) -> Observation:
    status = look.status
    if status is not None and not status.state.final:
        return _present(look, status, status.state)
    if look.cancelled and (settled or look.started is None):
        return _recorded(look, _written(look, "CANCELLED", "USER_CANCELLED", "cancelled; it left no record"))
    if status is None:
        return _vanished(look, settled)
    if not settled:
        return _present(look, status, State.RUNNING)
    if status.reason:
        return _recorded(look, _written(look, "FAILED", status.reason, status.message))
    return _present(look, status, status.state)


def _vanished(look: Look, settled: bool) -> Observation:
    """A job that the batch system does not have; it may be about to begin, or to write its record."""
    if look.cancelled or (look.there and not settled):
        state = State.QUEUED if look.started is None else State.RUNNING
        return Observation(look.token, look.native_id, Seen.PRESENT, state, "missed")
    return Observation(look.token, look.native_id, Seen.ABSENT)


def _present(look: Look, status: Status, state: State) -> Observation:
    return Observation(
        look.token,
        look.native_id,
        Seen.PRESENT,
        state,
        status.native_state,
        node=status.node,
        queue=status.queue,
        start_time=status.start_time if state is not State.QUEUED else None,
        usage=look.usage,
    )


def _recorded(look: Look, told: Any) -> Observation:
    record = received.record(told)
    return Observation(
        look.token,
        look.native_id,
        Seen.PRESENT,
        State[record["state"]],
        look.status.native_state if look.status is not None else record["state"],
        node=record.get("host", ""),
        queue=look.status.queue if look.status is not None else "",
        start_time=received.moment(record.get("start_time")),
        record=record,
    )


def _written(look: Look, state: str, reason: str, message: str) -> dict[str, Any]:
    """The exit record that the wrapper could not leave."""
    started = look.started if isinstance(look.started, Mapping) else {}
    status = look.status
    return {
        "format": 1,
        "token": look.token,
        "host": started.get("host", "") or (status.node if status is not None else ""),
        "state": state,
        "reason": REASONS[reason],
        "reason_name": reason,
        "message": message,
        "exit_code": None,
        "start_time": started.get("time"),
        "outputs": [],
    }


def running(started: Any) -> Status:
    """The status of a job whose wrapper is alive."""
    told = started if isinstance(started, Mapping) else {}
    since, host = received.moment(told.get("time")), str(told.get("host", ""))
    return Status(State.RUNNING, "started", node=host, start_time=since)
