"""Why a job waits, and when it is its turn."""

from datetime import datetime

from khomas.api.scheduler.v1.state_pb2 import DesiredState, Reason
from khomas.scheduler.records import Desired, Job, ReasonCode


def waiting(job: Job, now: datetime) -> Job:
    """The pending job with its reason and the moment of its turn."""
    reason, message, due = why_waiting(now, job.desired, job.waits, job.start_after, job.next_attempt_time, job.message)
    if job.is_array:
        return job._replace(reason=reason, rest_reason=reason, message=message, due=due)
    return job._replace(reason=reason, message=message, due=due)


def why_waiting(
    now: datetime,
    desired: Desired,
    waits: int,
    start_after: datetime | None,
    next_attempt_time: datetime | None = None,
    message: str = "",
) -> tuple[ReasonCode, str, datetime | None]:
    """Reason, sentence, and the moment of its turn; `message` says why it was tried before."""
    if desired == DesiredState.DESIRED_STATE_HOLD:
        return Reason.REASON_WAIT_HELD_BY_USER, "held until it is released", None
    if waits:
        return Reason.REASON_WAIT_DEPENDENCY, f"{waits} jobs that it depends on are not done", None
    if start_after and start_after > now:
        said = f"not before {start_after.isoformat(timespec='seconds')}"
        return Reason.REASON_WAIT_START_TIME, said, start_after
    if next_attempt_time and next_attempt_time > now:
        return Reason.REASON_WAIT_BACKOFF, message, next_attempt_time
    return Reason.REASON_WAIT_RESOURCES, "waits for its turn", now
