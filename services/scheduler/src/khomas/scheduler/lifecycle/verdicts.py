"""What an ended attempt came to: by the wrapper's exit record first, by the batch system second."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from khomas.api.scheduler.v1.state_pb2 import JobState, Reason
from khomas.scheduler.backends.interface import Observation
from khomas.scheduler.backends.interface import State as Native
from khomas.scheduler.records import Attempt, ReasonCode, State

_STATES: Mapping[str, State] = {
    "SUCCEEDED": JobState.JOB_STATE_SUCCEEDED,
    "FAILED": JobState.JOB_STATE_FAILED,
    "CANCELLED": JobState.JOB_STATE_CANCELLED,
}
# A batch system that ended a job whose wrapper left no record.
_NATIVE_ENDS: Mapping[Native, tuple[ReasonCode, str]] = {
    Native.SUCCEEDED: (Reason.REASON_INFRA_LOST, "the batch system says it is done, but it left no record"),
    Native.FAILED: (Reason.REASON_INFRA_NODE_FAILURE, "the batch system says it failed, and it left no record"),
    Native.CANCELLED: (Reason.REASON_INFRA_PREEMPTED, "the batch system ended it before it could leave a record"),
}
_KEPT = ("state", "reason", "message", "outputs", "application_status")


def judged(attempt: Attempt, seen: Observation, moment: datetime) -> Attempt:
    """The attempt after its end: final, or FINISHING while there are files to bring home."""
    if seen.record is None:
        reason, message = _NATIVE_ENDS[seen.state]
        failed = attempt._replace(state=JobState.JOB_STATE_FAILED, reason=reason, message=message)
        return failed._replace(native_state=seen.native_state, end_time=moment)
    record = seen.record
    attempt = attempt._replace(
        exit_code=record.get("exit_code"),
        signal=record.get("signal"),
        usage=dict(record.get("usage") or {}),
        native_state=seen.native_state,
        record=kept(record),
    )
    if record.get("outputs"):
        state = JobState.JOB_STATE_FINISHING
        return attempt._replace(state=state, reason=Reason.REASON_UNSPECIFIED, message="bringing files home")
    return ended(attempt, moment)


def kept(record: Mapping[str, Any]) -> dict[str, Any]:
    """What is needed of an exit record until all files are home."""
    return {key: record[key] for key in _KEPT if key in record}


def ended(attempt: Attempt, moment: datetime) -> Attempt:
    """The attempt after the end that its exit record tells."""
    record = attempt.record
    state = _STATES[record["state"]]
    return attempt._replace(
        state=state,
        reason=_reason(record),
        message=str(record.get("message", "")),
        end_time=moment,
        record={key: record[key] for key in ("application_status",) if record.get(key)},
    )


def failed(attempt: Attempt, reason: ReasonCode, message: str, moment: datetime) -> Attempt:
    """The attempt after it failed at our end."""
    state = JobState.JOB_STATE_FAILED
    return attempt._replace(state=state, reason=reason, message=message, end_time=moment, record={})


def _reason(record: Mapping[str, Any]) -> ReasonCode:
    number = record.get("reason", 0)
    known = Reason.values()
    return number if number in known else Reason.REASON_INFRA_ENVIRONMENT
