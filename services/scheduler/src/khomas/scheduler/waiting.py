"""Why a job waits, and when it is its turn."""

from dataclasses import replace
from datetime import datetime

from khomas.api.scheduler.v1.state_pb2 import DesiredState, Reason
from khomas.scheduler.records import Job


def waiting(job: Job, now: datetime) -> Job:
    """The pending job with its reason and the moment of its turn."""
    if job.desired == DesiredState.DESIRED_STATE_HOLD:
        return _because(job, Reason.REASON_WAIT_HELD_BY_USER, "held until it is released", None)
    if job.waits:
        return _because(job, Reason.REASON_WAIT_DEPENDENCY, f"{job.waits} jobs that it depends on are not done", None)
    if job.start_after and job.start_after > now:
        message = f"not before {job.start_after.isoformat(timespec='seconds')}"
        return _because(job, Reason.REASON_WAIT_START_TIME, message, job.start_after)
    if job.next_attempt_time and job.next_attempt_time > now:
        return _because(job, Reason.REASON_WAIT_BACKOFF, job.message, job.next_attempt_time)
    return _because(job, Reason.REASON_WAIT_RESOURCES, "waits for its turn", now)


def _because(job: Job, reason: Reason.ValueType, message: str, due: datetime | None) -> Job:
    if job.is_array:
        return replace(job, reason=reason, rest_reason=reason, message=message, due=due)
    return replace(job, reason=reason, message=message, due=due)
