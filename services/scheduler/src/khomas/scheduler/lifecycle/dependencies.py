"""Whether a dependency is kept by what has ended."""

from enum import Enum

from khomas.api.scheduler.v1.job_spec_pb2 import Dependency as Wire
from khomas.api.scheduler.v1.state_pb2 import JobState
from khomas.scheduler.records import Counts, Dependency, Job


class Verdict(Enum):
    """What an end means for a job that waited for it."""

    KEPT = "kept"
    FAILS = "fails"
    CANCELS = "cancels"


def judge(dependency: Dependency, ended: Job, counts: Counts | None) -> Verdict:
    """Judge a dependency on a job or array that has ended; `counts` are those of the array."""
    if dependency.condition == Wire.CONDITION_ENDED:
        return Verdict.KEPT
    if dependency.condition == Wire.CONDITION_FAILED:
        return Verdict.KEPT if ended.state == JobState.JOB_STATE_FAILED else Verdict.CANCELS
    if ended.state == JobState.JOB_STATE_SUCCEEDED:
        return Verdict.KEPT
    if counts is not None and dependency.min_fraction:
        succeeded = counts.of(JobState.JOB_STATE_SUCCEEDED)
        return Verdict.KEPT if succeeded >= dependency.min_fraction * counts.total else Verdict.FAILS
    return Verdict.FAILS
