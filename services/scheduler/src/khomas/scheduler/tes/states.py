"""States of tasks, and the jobs that are in them."""

from collections.abc import Iterable, Mapping
from enum import StrEnum

from khomas.api.scheduler.v1.job_pb2 import JobStatus
from khomas.api.scheduler.v1.state_pb2 import DesiredState, JobState, Reason
from khomas.scheduler.messages import reason_name, state_name
from khomas.scheduler.records import FINAL, ReasonCode, State


class TaskState(StrEnum):
    """As TES calls them."""

    UNKNOWN = "UNKNOWN"
    QUEUED = "QUEUED"
    INITIALIZING = "INITIALIZING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    COMPLETE = "COMPLETE"
    EXECUTOR_ERROR = "EXECUTOR_ERROR"
    SYSTEM_ERROR = "SYSTEM_ERROR"
    CANCELED = "CANCELED"
    CANCELING = "CANCELING"
    PREEMPTED = "PREEMPTED"


# FAILED is told apart by its reason.
_STATES: Mapping[State, TaskState] = {
    JobState.JOB_STATE_DRAFT: TaskState.QUEUED,
    JobState.JOB_STATE_PENDING: TaskState.QUEUED,
    JobState.JOB_STATE_STAGING: TaskState.QUEUED,
    JobState.JOB_STATE_SUBMITTING: TaskState.QUEUED,
    JobState.JOB_STATE_QUEUED: TaskState.QUEUED,
    JobState.JOB_STATE_STARTING: TaskState.INITIALIZING,
    JobState.JOB_STATE_RUNNING: TaskState.RUNNING,
    JobState.JOB_STATE_SUSPENDED: TaskState.PAUSED,
    JobState.JOB_STATE_FINISHING: TaskState.RUNNING,
    JobState.JOB_STATE_STALLED: TaskState.UNKNOWN,
    JobState.JOB_STATE_SUCCEEDED: TaskState.COMPLETE,
    JobState.JOB_STATE_CANCELLED: TaskState.CANCELED,
}
_FAILURES = (TaskState.EXECUTOR_ERROR, TaskState.PREEMPTED, TaskState.SYSTEM_ERROR)


def task_state(status: JobStatus) -> TaskState:
    """The state of the task that a job is."""
    if status.state == JobState.JOB_STATE_FAILED:
        return _failure(status.reason)
    if status.desired == DesiredState.DESIRED_STATE_CANCEL and status.state not in FINAL:
        return TaskState.CANCELING
    return _STATES.get(status.state, TaskState.UNKNOWN)


def jobs_in(state: TaskState) -> str:
    """The filter for the jobs whose task is in this state."""
    if state is TaskState.CANCELING:
        return f"desired = CANCEL AND NOT ({_any('state', map(state_name, sorted(FINAL)))})"
    if state in _FAILURES:
        reasons = [reason_name(one) for one in Reason.values() if one and _failure(one) is state]
        return f"state = FAILED AND ({_any('reason', reasons)})"
    states = [one for one, shown in _STATES.items() if shown is state]
    among = f"({_any('state', map(state_name, states))})"
    return among if set(states) <= FINAL else f"{among} AND NOT desired = CANCEL"


def _failure(reason: ReasonCode) -> TaskState:
    if reason == Reason.REASON_INFRA_PREEMPTED:
        return TaskState.PREEMPTED
    # The hundreds are kinds: 2xx is the payload.
    return TaskState.EXECUTOR_ERROR if reason // 100 == 2 else TaskState.SYSTEM_ERROR


def _any(field: str, names: Iterable[str]) -> str:
    return " OR ".join(f"{field} = {name}" for name in names)
