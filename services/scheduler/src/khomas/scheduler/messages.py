"""From rows to messages of the contract."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from khomas.api.scheduler.v1 import job_pb2 as pb
from khomas.api.scheduler.v1.job_spec_pb2 import JobSpec
from khomas.api.scheduler.v1.state_pb2 import JobState, Reason
from khomas.scheduler.records import Attempt, Counts, Job, ReasonCode, State, Stored, Summary


def state_name(state: State) -> str:
    """ "FAILED"."""
    return JobState.Name(state).removeprefix("JOB_STATE_")


def reason_name(reason: ReasonCode) -> str:
    """ "APP_EXIT_CODE", empty for none."""
    return Reason.Name(reason).removeprefix("REASON_") if reason else ""


def job_message(job: Job | Summary, attempts: Iterable[Attempt] = ()) -> pb.Job:
    """Write a job without its spec."""
    message = pb.Job()
    write_job(message, job, attempts=attempts)
    return message


def write_job(
    message: pb.Job,
    job: Job | Summary,
    *,
    spec: JobSpec | None = None,
    attempts: Iterable[Attempt] = (),
    counts: Counts | None = None,
    site: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write a job; spec and attempts only where given, counts also where all children are still to be made.

    Fields set one by one take half the time of those given to the constructor.
    """
    message.name = f"jobs/{job.uid}"
    message.uid = job.uid
    message.origin = job.origin
    message.trace_id = job.trace_id
    if job.parent:
        message.parent = f"jobs/{job.parent}"
    message.index = job.index
    if parameters := job.parameters:
        message.parameters.update(parameters)
    _write_status(message.status, job)
    _set(message.create_time, job.create_time)
    _set(message.update_time, job.update_time)
    if job.end_time is not None:
        _set(message.end_time, job.end_time)
    message.owner = job.owner
    message.etag = str(job.version)
    if job.merges:
        message.merges = f"jobs/{job.merges}"
    if spec is not None:
        message.spec.CopyFrom(spec)
    for attempt in attempts:
        message.attempts.append(attempt_message(attempt, site.get(attempt.backend, "")))
    if counts is None and job.is_array and job.made == 0:
        counts = Counts({(job.rest_state, job.rest_reason): job.total})
    if counts is not None:
        message.counts.CopyFrom(counts_message(counts))


def _write_status(status: pb.JobStatus, job: Job | Summary) -> None:
    status.state = job.state
    if job.reason:
        status.reason = job.reason
    if job.message:
        status.message = job.message
    _set(status.since, job.since)
    status.desired = job.desired
    if job.attempt:
        status.attempt = job.attempt
    status.version = job.version
    if job.application_status:
        status.application_status = job.application_status
    if job.next_attempt_time is not None:
        _set(status.next_attempt_time, job.next_attempt_time)


def counts_message(counts: Counts) -> pb.JobCounts:
    """Write counts by name."""
    by_state: dict[str, int] = {}
    by_reason: dict[str, int] = {}
    for (state, reason), number in counts.numbers.items():
        if number:
            by_state[state_name(state)] = by_state.get(state_name(state), 0) + number
        if number and reason:
            by_reason[reason_name(reason)] = by_reason.get(reason_name(reason), 0) + number
    return pb.JobCounts(total=counts.total, by_state=by_state, by_reason=by_reason)


def attempt_message(attempt: Attempt, site: str = "") -> pb.Attempt:
    """Write an attempt."""
    return pb.Attempt(
        number=attempt.number,
        uid=attempt.uid,
        backend=attempt.backend,
        native_id=attempt.native_id,
        queue=attempt.queue,
        node=attempt.node,
        site=site,
        state=attempt.state,
        reason=attempt.reason,
        message=attempt.message,
        native_state=attempt.native_state,
        exit_code=attempt.exit_code,
        signal=attempt.signal,
        usage=_usage(attempt.usage) if attempt.usage else None,
        outputs=[json_format.ParseDict(output, pb.OutputFile()) for output in attempt.outputs],
        create_time=_time(attempt.create_time),
        submit_time=_time(attempt.submit_time),
        start_time=_time(attempt.start_time),
        end_time=_time(attempt.end_time),
        script_sha256=attempt.script_sha256,
        inputs=attempt.inputs,
    )


def _usage(usage: Mapping[str, Any]) -> pb.Usage:
    return pb.Usage(
        wall_time=_duration(usage.get("wall_s", 0.0)),
        cpu_user_time=_duration(usage.get("cpu_user_s", 0.0)),
        cpu_system_time=_duration(usage.get("cpu_system_s", 0.0)),
        **{key: usage.get(key, 0) for key in _COUNTED},
    )


_COUNTED: Sequence[str] = ("max_memory_bytes", "max_disk_bytes", "read_bytes", "write_bytes", "events")


def _set(target: Timestamp, value: Stored) -> None:
    target.CopyFrom(_timestamp(value))


def _time(value: datetime | None) -> Timestamp | None:
    return None if value is None else _timestamp(value)


@lru_cache(maxsize=1024)
def _timestamp(value: Stored) -> Timestamp:
    """The moment on the wire; rows that are written together share theirs."""
    written = Timestamp()
    if isinstance(value, int):
        written.FromMicroseconds(value)
    else:
        written.FromDatetime(value)
    return written


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration
