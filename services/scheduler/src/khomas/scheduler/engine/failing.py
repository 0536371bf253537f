"""What becomes of a job whose attempt ended badly."""

import asyncio
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.scheduler.v1.placement_pb2 import RetryRule
from khomas.api.scheduler.v1.state_pb2 import DesiredState, JobState, Reason
from khomas.kit.patterns import search
from khomas.scheduler.engine.desk import Desk
from khomas.scheduler.lifecycle.bounds import grown
from khomas.scheduler.lifecycle.retry import Decision, Failure, decide, log_patterns
from khomas.scheduler.lifecycle.waiting import waiting
from khomas.scheduler.records import Attempt, Job, ReasonCode
from khomas.scheduler.store.changes import Change, lock_jobs, moved, read_jobs

log = logging.getLogger(__name__)

_CANCEL = DesiredState.DESIRED_STATE_CANCEL
_LOG_BYTES = 64 * 1024
# A wish to end the job that is no person's: then it has FAILED.
_LIMITS = (Reason.REASON_LIMIT_DEADLINE, Reason.REASON_LIMIT_SLOW)


async def after_failures(
    connection: AsyncConnection,
    desk: Desk,
    attempts: Sequence[Attempt],
    moment: datetime,
    found: Mapping[str, Collection[str]] | None = None,
) -> list[Change]:
    """The steps of jobs whose attempts FAILED or were CANCELLED: another attempt, a pause, or the end.

    `found` by attempt uid, from `found_in_logs`.
    """
    if not attempts:
        return []
    by_job = {attempt.job: attempt for attempt in attempts}
    jobs = await lock_jobs(connection, by_job)
    plans = await desk.blueprints.of(connection, {job.spec for job in jobs})
    changes = []
    for job in jobs:
        attempt = _as_wanted(by_job[job.uid], job)
        failure = Failure(attempt.reason, attempt.exit_code, (found or {}).get(attempt.uid, ()))
        decision = decide(plans[job.spec].spec.retry, failure, job.counted, job.attempt, desk.defaults, job.uid)
        changes.append(Change(job, _after(job, attempt, decision, moment), attempt))
    return changes


async def found_in_logs(desk: Desk, attempts: Iterable[Attempt]) -> dict[str, set[str]]:
    """What retry rules look for and find in what attempts printed, by attempt uid."""
    wanted = [attempt for attempt in attempts if attempt.state == JobState.JOB_STATE_FAILED and attempt.native_id]
    if not wanted:
        return {}
    async with desk.database.read() as connection:
        jobs = {job.uid: job for job in await read_jobs(connection, [attempt.job for attempt in wanted])}
        plans = await desk.blueprints.of(connection, {job.spec for job in jobs.values()})
    patterns = {
        attempt.uid: log_patterns(plans[jobs[attempt.job].spec].spec.retry, attempt.reason, attempt.exit_code)
        for attempt in wanted
    }
    looked_at = [attempt for attempt in wanted if patterns[attempt.uid]]
    ends = await asyncio.gather(*[_end_of_log(desk, attempt) for attempt in looked_at])
    asked = [
        (attempt.uid, pattern, end)
        for attempt, end in zip(looked_at, ends, strict=True)
        for pattern in patterns[attempt.uid]
    ]
    if not asked:
        return {}
    answers = await search([(pattern.encode(), end) for _, pattern, end in asked])
    found: dict[str, set[str]] = {attempt.uid: set() for attempt in looked_at}
    for (uid, pattern, _), answer in zip(asked, answers, strict=True):
        if answer.there:
            found[uid].add(pattern)
        elif not answer.answered:
            log.warning("log_regex.unanswered", extra={"attempt": uid, "pattern": pattern})
    return found


async def _end_of_log(desk: Desk, attempt: Attempt) -> bytes:
    try:
        backend = desk.sites[attempt.backend].backend
        async with asyncio.timeout(desk.settings.backend_deadline.total_seconds()):
            parts = [
                await backend.peek(attempt.native_id, name, -_LOG_BYTES, _LOG_BYTES) for name in ("stderr", "stdout")
            ]
    except Exception:
        log.exception("log.unreadable", extra={"attempt": attempt.uid})
        return b""
    return b"\n".join(part.data for part in parts)


def why(job: Job, reason: ReasonCode = Reason.REASON_UNSPECIFIED, message: str = "") -> tuple[ReasonCode, str]:
    """Reason and sentence of a step; a job whose end is wanted keeps those that say why it is."""
    return (job.reason, job.message) if job.desired == _CANCEL else (reason, message)


def _as_wanted(attempt: Attempt, job: Job) -> Attempt:
    """An attempt that was ended although nobody here wanted that has FAILED, and so has one that met a limit."""
    if attempt.state != JobState.JOB_STATE_CANCELLED:
        return attempt
    if job.desired == _CANCEL:
        limit = job.reason in _LIMITS
        state = JobState.JOB_STATE_FAILED
        return attempt._replace(state=state, reason=job.reason, message=job.message) if limit else attempt
    reason, message = Reason.REASON_INFRA_PREEMPTED, f"{attempt.backend} ended it, and nobody had asked for that"
    return attempt._replace(state=JobState.JOB_STATE_FAILED, reason=reason, message=message)


def _after(job: Job, attempt: Attempt, decision: Decision, moment: datetime) -> Job:
    if job.desired == _CANCEL:
        return _cancelled(job, moment)
    if decision.action == RetryRule.ACTION_FAIL:
        return moved(job, moment, JobState.JOB_STATE_FAILED, attempt.reason, attempt.message)
    said = f"attempt {attempt.number} failed: {attempt.message}"
    counted = job.counted + decision.counts
    if decision.action == RetryRule.ACTION_HOLD:
        reason, hold = Reason.REASON_WAIT_HELD_BY_USER, DesiredState.DESIRED_STATE_HOLD
        said = f"{said}; a rule of its retry policy holds it until it is released"
        return moved(job, moment, JobState.JOB_STATE_PENDING, reason, said, desired=hold, counted=counted)
    again = moment + decision.backoff
    pending = moved(
        job,
        moment,
        JobState.JOB_STATE_PENDING,
        counted=counted,
        next_attempt_time=again,
        deadline=job.deadline,
        memory_factor=grown(job.memory_factor, decision.memory_factor),
        wall_factor=grown(job.wall_factor, decision.wall_factor),
    )
    return waiting(pending._replace(message=said), moment)


def _cancelled(job: Job, moment: datetime) -> Job:
    """Its end was wanted: by a person, or by a limit."""
    if job.reason in _LIMITS:
        return moved(job, moment, JobState.JOB_STATE_FAILED, job.reason, job.message)
    return moved(job, moment, JobState.JOB_STATE_CANCELLED, Reason.REASON_USER_CANCELLED, job.message or "cancelled")
