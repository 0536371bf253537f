"""What becomes of a recall after the tape system has answered. No I/O."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Final

from sqlalchemy import Row

from khomas.api.storage.v1 import recall_pb2 as pb
from khomas.storage.protocols.interface import Problem, ProtocolFault, Recall, Recalling
from khomas.storage.recalls.messages import State

_REASONS: Final = {
    Problem.CREDENTIAL: pb.RECALL_REASON_CREDENTIAL,
    Problem.REFUSED: pb.RECALL_REASON_CREDENTIAL,
    Problem.CONFIGURATION: pb.RECALL_REASON_CONFIGURATION,
    Problem.UNSUPPORTED: pb.RECALL_REASON_CONFIGURATION,
    Problem.ABSENT: pb.RECALL_REASON_LOST,
}
# Asking again would end in the same way.
_FINAL: Final = frozenset({pb.RECALL_REASON_CONFIGURATION, pb.RECALL_REASON_LOST})


@dataclass(frozen=True, slots=True)
class Patience:
    """How patient the service is with tape systems."""

    # Between two questions about the same file.
    poll: timedelta
    # After a fault.
    pause: timedelta
    # Until a request is believed to be unknown: it may be asked after before it has come there.
    grace: timedelta
    # Errors of the tape system itself, not of the way to it.
    attempts: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """A recall as it is now. The epoch is that of the lease under which this was found out."""

    columns: ClassVar[tuple[str, ...]] = (
        "state", "reason", "message", "request_uid", "native_id", "owed", "attempts", "queue_position",
        "position_estimated", "pin_time", "due_time", "active_key", "state_time", "end_time",
    )  # fmt: skip

    row: Row[Any]
    state: int
    reason: int
    message: str
    request_uid: str
    native_id: str
    owed: str
    attempts: int
    queue_position: int
    position_estimated: bool
    pin_time: datetime | None
    due_time: datetime | None
    active_key: str | None
    state_time: datetime
    end_time: datetime | None

    @property
    def tells(self) -> bool:
        """Whether anybody would want to hear of it."""
        before = (self.row.state, self.row.reason, self.row.message, self.row.native_id)
        return before != (self.state, self.reason, self.message, self.native_id)

    def row_values(self) -> tuple[Any, ...]:
        """Return what is stored, after uid and epoch."""
        return self.row.uid, self.row.lease_epoch, *(getattr(self, name) for name in self.columns)


def asked(row: Row[Any], request_uid: str, told: str | ProtocolFault, patience: Patience) -> Outcome:
    """Return what follows from the answer to a request."""
    if isinstance(told, ProtocolFault):
        # Nobody was there: then nobody has it. In any other case somebody may.
        doubtful = "" if told.problem is not Problem.PASSING else request_uid
        return _changed(fault_outcome(row, told, patience), request_uid=doubtful)
    return _requested(row, request_uid, told, patience)


def found_again(row: Row[Any], told: Recalling | ProtocolFault, patience: Patience) -> Outcome | None:
    """Return what has become of one for which a tape system may have been asked; None if it was not."""
    if isinstance(told, ProtocolFault):
        return _changed(fault_outcome(row, told, patience), request_uid=row.request_uid)
    if told.state in (Recall.UNKNOWN, Recall.CANCELLED, Recall.FAILED):
        return None
    if told.state is Recall.DONE:
        return _online(row)
    return _requested(row, row.request_uid, row.native_id or "*", patience, told)


def answered(row: Row[Any], told: Recalling | ProtocolFault, patience: Patience) -> Outcome:
    """Return what follows when a tape system tells how far one is."""
    if isinstance(told, ProtocolFault):
        return fault_outcome(row, told, patience)
    match told.state:
        case Recall.DONE:
            return _online(row)
        case Recall.WAITING | Recall.RUNNING:
            return _requested(row, row.request_uid, row.native_id, patience, told)
        case Recall.UNKNOWN if datetime.now(UTC) - row.state_time < patience.grace:
            return _of(row, due_time=datetime.now(UTC) + patience.poll)
        case Recall.UNKNOWN | Recall.CANCELLED:
            message = told.message or "the tape system has forgotten the request"
            return _waiting(row, pb.RECALL_REASON_TAPE_ERROR, message, patience.pause)
    return _failed(row, told.message, patience)


def fault_outcome(row: Row[Any], fault: ProtocolFault, patience: Patience) -> Outcome:
    """Return what follows when there was no answer: the recall stays as it is, with the reason."""
    reason = _REASONS.get(fault.problem, pb.RECALL_REASON_FRONT_END)
    if reason in _FINAL:
        return _over(row, reason, fault.message)
    now = datetime.now(UTC)
    return _of(row, reason=reason, message=fault.message, due_time=now + patience.pause)


def paid(row: Row[Any], fault: ProtocolFault | None, patience: Patience) -> Outcome:
    """Return what follows when a tape system was told that something is not needed any more."""
    waits = fault is not None and _REASONS.get(fault.problem, pb.RECALL_REASON_FRONT_END) not in _FINAL
    if waits:
        return _of(row, due_time=datetime.now(UTC) + patience.pause)
    return _of(row, owed="", due_time=None)


def _requested(
    row: Row[Any], request_uid: str, native: str, patience: Patience, told: Recalling | None = None
) -> Outcome:
    now = datetime.now(UTC)
    place = told.queue_position if told is not None else None
    return _of(
        row,
        state=State.STATE_REQUESTED,
        reason=pb.RECALL_REASON_TAPE_QUEUE,
        message="",
        request_uid=request_uid,
        native_id=native,
        queue_position=row.queue_position if place is None else place,
        position_estimated=place is None,
        due_time=now + patience.poll,
        state_time=row.state_time if row.state == State.STATE_REQUESTED else now,
    )


def _online(row: Row[Any]) -> Outcome:
    now = datetime.now(UTC)
    return _of(
        row,
        state=State.STATE_ONLINE,
        reason=pb.RECALL_REASON_UNSPECIFIED,
        message="",
        pin_time=now + timedelta(seconds=row.pin_seconds),
        # The end of the time is looked for by itself.
        due_time=None,
        state_time=now,
    )


def _failed(row: Row[Any], message: str, patience: Patience) -> Outcome:
    if row.attempts + 1 >= patience.attempts:
        return _changed(_over(row, pb.RECALL_REASON_TAPE_ERROR, message), attempts=row.attempts + 1)
    waiting = _waiting(row, pb.RECALL_REASON_TAPE_ERROR, message, patience.pause * 2**row.attempts)
    return _changed(waiting, attempts=row.attempts + 1)


def _waiting(row: Row[Any], reason: int, message: str, pause: timedelta) -> Outcome:
    now = datetime.now(UTC)
    return _of(
        row,
        state=State.STATE_WAITING,
        reason=reason,
        message=message,
        request_uid="",
        native_id="",
        due_time=now + pause,
        state_time=now,
    )


def _over(row: Row[Any], reason: int, message: str) -> Outcome:
    now = datetime.now(UTC)
    return _of(
        row,
        state=State.STATE_FAILED,
        reason=reason,
        message=message,
        due_time=None,
        active_key=None,
        state_time=now,
        end_time=now,
    )


def _of(row: Row[Any], **values: Any) -> Outcome:
    return Outcome(row, **({name: getattr(row, name) for name in Outcome.columns} | values))


def _changed(outcome: Outcome, **values: Any) -> Outcome:
    return _of(outcome.row, **({name: getattr(outcome, name) for name in Outcome.columns} | values))
