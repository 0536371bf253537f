"""Which state may follow which, and what state an array has."""

from collections.abc import Mapping

from khomas.api.scheduler.v1.state_pb2 import JobState
from khomas.scheduler.records import FINAL, Counts, State

_WITH_BACKEND: frozenset[State] = frozenset(
    {
        JobState.JOB_STATE_QUEUED,
        JobState.JOB_STATE_STARTING,
        JobState.JOB_STATE_RUNNING,
        JobState.JOB_STATE_SUSPENDED,
        JobState.JOB_STATE_STALLED,
    }
)
# After a failed attempt a job is PENDING again, or it ends.
_ENDS: frozenset[State] = FINAL | {JobState.JOB_STATE_PENDING}
# A look at a batch system is now and then: states in between may be passed unseen.
ALLOWED: Mapping[State, frozenset[State]] = {
    JobState.JOB_STATE_DRAFT: frozenset({JobState.JOB_STATE_PENDING, JobState.JOB_STATE_CANCELLED}),
    JobState.JOB_STATE_PENDING: frozenset(
        {
            JobState.JOB_STATE_PENDING,
            JobState.JOB_STATE_STAGING,
            JobState.JOB_STATE_SUBMITTING,
            JobState.JOB_STATE_FAILED,
            JobState.JOB_STATE_CANCELLED,
        }
    ),
    JobState.JOB_STATE_STAGING: frozenset(
        {
            JobState.JOB_STATE_PENDING,
            JobState.JOB_STATE_SUBMITTING,
            JobState.JOB_STATE_FAILED,
            JobState.JOB_STATE_CANCELLED,
        }
    ),
    JobState.JOB_STATE_SUBMITTING: _WITH_BACKEND
    | _ENDS
    | {JobState.JOB_STATE_SUBMITTING, JobState.JOB_STATE_FINISHING},
    **{state: _WITH_BACKEND | _ENDS | {JobState.JOB_STATE_FINISHING} for state in _WITH_BACKEND},
    JobState.JOB_STATE_FINISHING: _ENDS | {JobState.JOB_STATE_FINISHING},
    **{state: frozenset() for state in FINAL},
}


class TransitionForbidden(RuntimeError):
    """An error of ours: this state cannot follow that one."""


def check(before: State, after: State) -> None:
    """Raise `TransitionForbidden` unless the one state may follow the other."""
    if after not in ALLOWED[before]:
        raise TransitionForbidden(f"{JobState.Name(before)} cannot become {JobState.Name(after)}")


def array_state(counts: Counts) -> State:
    """The least advanced state of the children; when all ended, the worst of their ends."""
    states = {state for (state, _), number in counts.numbers.items() if number}
    if going := states - FINAL:
        return min(going)
    for state in (JobState.JOB_STATE_FAILED, JobState.JOB_STATE_CANCELLED):
        if state in states:
            return state
    return JobState.JOB_STATE_SUCCEEDED
