"""Why a job waits or failed, what would change it and who can."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from khomas.api.common.v1.explanation_pb2 import Explanation, Remedy
from khomas.api.scheduler.v1.job_spec_pb2 import JobSpec
from khomas.api.scheduler.v1.state_pb2 import JobState, Reason
from khomas.scheduler.lifecycle.bounds import grown_bytes
from khomas.scheduler.messages import reason_name, state_name
from khomas.scheduler.placement.credentials import Lack
from khomas.scheduler.placement.matching import Match
from khomas.scheduler.records import Attempt, Counts, Job

_NOBODY = "nobody: it resolves itself"
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Facts:
    """What an explanation is made from."""

    job: Job
    spec: JobSpec
    now: datetime
    attempt: Attempt | None = None
    counts: Counts | None = None
    match: Match | None = None
    # Names and states of the jobs that it waits for.
    dependencies: Mapping[str, str] = field(default_factory=dict)
    # Jobs that are due before it.
    ahead: int = 0
    # Last lines of stderr, or of stdout.
    tail: Sequence[str] = ()
    # Jobs that take its place.
    newer: Sequence[str] = ()
    # Backends that it could go to, or is at, whose credentials are not good for it.
    lacks: Mapping[str, Lack] = field(default_factory=dict)
    # What the batch system where it waits says of it.
    told: str = ""


def explain(facts: Facts) -> Explanation:
    """Put the facts into words."""
    job = facts.job
    explanation = Explanation(
        subject=job.name,
        state=state_name(job.state),
        reason=reason_name(job.reason),
        summary=_summary(facts),
        since=job.since,  # type: ignore[arg-type]  # protobuf takes datetimes
        remedies=_remedies(facts),
        details=_details(facts),
    )
    if job.due is not None and not job.final:
        explanation.next_check_time.FromDatetime(max(job.due, facts.now))
    return explanation


def _summary(facts: Facts) -> str:
    job = facts.job
    for_so_long = f"for {_span(facts.now, job.since)}"
    if job.is_array and not job.final:
        return f"{state_name(job.state)} {for_so_long}: {_counted(facts.counts)}"
    if job.final:
        why = f": {job.message}" if job.message else ""
        return f"{state_name(job.state)} since {job.since.isoformat(timespec='seconds')}{why}"
    why = job.message or (facts.attempt.message if facts.attempt else "") or _told(facts) or "nothing is wrong"
    return f"{state_name(job.state)} {for_so_long}: {why}"


def _told(facts: Facts) -> str:
    return f"{facts.attempt.backend} says: {facts.told}" if facts.attempt and facts.told else ""


def _counted(counts: Counts | None) -> str:
    if counts is None:
        return ""
    by_state: dict[str, int] = {}
    for (state, _), number in counts.numbers.items():
        by_state[state_name(state)] = by_state.get(state_name(state), 0) + number
    return ", ".join(f"{number} {name}" for name, number in by_state.items() if number)


def _span(now: datetime, since: datetime) -> str:
    seconds = max(0, int((now - since).total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _details(facts: Facts) -> list[str]:
    job, details = facts.job, []
    if facts.counts is not None:
        reasons = {reason for (_, reason), number in facts.counts.numbers.items() if reason and number}
        said = {reason: sum(n for (_, r), n in facts.counts.numbers.items() if r == reason) for reason in reasons}
        details += [f"{number} with {reason_name(reason)}" for reason, number in sorted(said.items())]
    details += [f"waits for {name}: {state}" for name, state in facts.dependencies.items()]
    if job.state == JobState.JOB_STATE_PENDING and facts.match is not None:
        details.append(f"{facts.ahead} jobs are due before it")
        details += [facts.match.why] if facts.match.why else []
        details += facts.match.others
    details += [f"{backend} is not asked: {lack.message}" for backend, lack in facts.lacks.items()]
    attempt = facts.attempt
    if attempt is not None:
        place = " on ".join(part for part in (attempt.backend, attempt.node) if part)
        details.append(f"attempt {attempt.number} at {place}, native id {attempt.native_id or 'none yet'}")
        details += _used(attempt, facts)
    details += [f"| {line}" for line in facts.tail]
    details += [f"tried again as {name}" for name in facts.newer]
    return details


def _used(attempt: Attempt, facts: Facts) -> list[str]:
    if not attempt.usage:
        return []
    memory = attempt.usage.get("max_memory_bytes", 0)
    limit = grown_bytes(facts.spec.resources.memory_bytes, facts.job.memory_factor)
    allowed = f" of {limit / _MIB:.0f}" if limit else ""
    return [f"it used {attempt.usage.get('wall_s', 0):.1f} s and {memory / _MIB:.0f}{allowed} MiB of memory"]


def _remedies(facts: Facts) -> list[Remedy]:
    job = facts.job
    if job.final and job.state != JobState.JOB_STATE_FAILED:
        return []
    if job.reason in _REMEDIES:
        return _REMEDIES[job.reason](facts)
    if job.state == JobState.JOB_STATE_FAILED:
        return _failed(facts)
    if job.is_array:
        return []
    return [Remedy(who=_NOBODY, action="It goes on by itself.")]


def _failed(facts: Facts) -> list[Remedy]:
    uid, number = facts.job.uid, facts.job.reason
    look = Remedy(who="you", action="Look at what it printed.", command=f"khomas logs {uid} --stderr")
    again = Remedy(who="you", action="Try it again when the cause is removed.", command=f"khomas retry {uid}")
    if 400 <= number < 500:
        return [again, Remedy(who="operator", action="Look after the backend.", command="khomas backends")]
    return [look, again]


def _more_memory(facts: Facts) -> list[Remedy]:
    used = facts.attempt.usage.get("max_memory_bytes", 0) if facts.attempt else 0
    limit = grown_bytes(facts.spec.resources.memory_bytes, facts.job.memory_factor)
    wanted = -(-max(2 * limit, used, 256 * _MIB) // (256 * _MIB)) * 256
    size = f"{wanted // 1024}GiB" if wanted % 1024 == 0 else f"{wanted}MiB"
    command = f"khomas retry {facts.job.uid} --memory {size}"
    return [Remedy(who="you", action=f"Give it more memory: it was allowed {limit / _MIB:.0f} MiB.", command=command)]


def _more_time(facts: Facts) -> list[Remedy]:
    command = f"khomas retry {facts.job.uid} --wall +100%"
    return [Remedy(who="you", action="Give it more time, or less to do.", command=command)]


def _quota(facts: Facts) -> list[Remedy]:
    return [Remedy(who=_NOBODY, action="It goes on when its account may start more.", command="khomas shares")]


def _slow(facts: Facts) -> list[Remedy]:
    return [
        Remedy(
            who="you",
            action="Look what it waits for; ask for fewer cores, or for a lower min_cpu_efficiency.",
            command=f"khomas logs {facts.job.uid}",
        )
    ]


def _release(facts: Facts) -> list[Remedy]:
    return [Remedy(who="you", action="Release it.", command=f"khomas release-job {facts.job.uid}")]


def _input(facts: Facts) -> list[Remedy]:
    return [
        Remedy(who="you", action="Register the input, then try again.", command=f"khomas retry {facts.job.uid}"),
        Remedy(who="operator", action="Look for its replicas."),
    ]


def _register(facts: Facts) -> list[Remedy]:
    action = "Remove what the catalogue objects to (a taken name, an undeclared key), then try again."
    return [Remedy(who="you", action=action, command=f"khomas retry {facts.job.uid}")]


def _wait(facts: Facts) -> list[Remedy]:
    return [Remedy(who=_NOBODY, action="Wait, or give it a higher priority next time.")]


def _dependencies(facts: Facts) -> list[Remedy]:
    return [
        Remedy(
            who=_NOBODY, action=f"It goes on when {name} is done.", command=f"khomas why {name.removeprefix('jobs/')}"
        )
        for name in facts.dependencies
    ]


def _dependency_failed(facts: Facts) -> list[Remedy]:
    return [
        Remedy(
            who="you",
            action="Try again what it waited for, then this one.",
            command=f"khomas retry {name.removeprefix('jobs/')}",
        )
        for name in facts.dependencies
    ] or [Remedy(who="you", action="Submit it again.", command=f"khomas retry {facts.job.uid}")]


def _operator(facts: Facts) -> list[Remedy]:
    return [Remedy(who="operator", action="Look after the backend.", command="khomas backends")]


def _credential(facts: Facts) -> list[Remedy]:
    needed = {lack.credential: lack for lack in facts.lacks.values()}
    return [
        Remedy(who="operator", action=f"Renew it where the scheduler runs: {lack.message}.", command=lack.remedy)
        for lack in needed.values()
    ] or [Remedy(who=_NOBODY, action="The credential is good again: it goes on in a moment.")]


def _output(facts: Facts) -> list[Remedy]:
    globs = ", ".join(output.glob for output in facts.spec.outputs)
    return [
        Remedy(
            who="you",
            action=f"Look why the program did not make {globs}; with min_files = -1 an output may be missing.",
            command=f"khomas logs {facts.job.uid} --stderr",
        )
    ]


_REMEDIES: Mapping[Reason.ValueType, Callable[[Facts], list[Remedy]]] = {
    Reason.REASON_LIMIT_MEMORY: _more_memory,
    Reason.REASON_LIMIT_WALL: _more_time,
    Reason.REASON_LIMIT_CPU: _more_time,
    Reason.REASON_LIMIT_SLOW: _slow,
    Reason.REASON_WAIT_QUOTA: _quota,
    Reason.REASON_WAIT_HELD_BY_USER: _release,
    Reason.REASON_DATA_INPUT_MISSING: _input,
    Reason.REASON_DATA_REGISTER: _register,
    Reason.REASON_WAIT_RESOURCES: _wait,
    Reason.REASON_WAIT_THROTTLED: _wait,
    Reason.REASON_WAIT_DEPENDENCY: _dependencies,
    Reason.REASON_DEPENDENCY_FAILED: _dependency_failed,
    Reason.REASON_WAIT_BACKEND: _operator,
    Reason.REASON_WAIT_NO_MATCH: _operator,
    Reason.REASON_APP_OUTPUT_MISSING: _output,
    Reason.REASON_WAIT_CREDENTIAL: _credential,
}
