"""What happens after a failed attempt."""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from khomas.api.scheduler.v1.placement_pb2 import RetryPolicy, RetryRule
from khomas.api.scheduler.v1.state_pb2 import JobState, Reason
from khomas.scheduler.lifecycle.bounds import span
from khomas.scheduler.records import Attempt

# Infrastructure, and passing trouble with data. The payload's own failures would only happen again.
_PASSING_DATA = frozenset({Reason.REASON_DATA_STAGE_IN, Reason.REASON_DATA_STAGE_OUT, Reason.REASON_DATA_CHECKSUM})
# Nobody's fault: these do not use up attempts.
_UNCOUNTED = frozenset({Reason.REASON_INFRA_PREEMPTED})
_DEFAULT_GROWTH = 1.5


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a policy that does not say means."""

    max_attempts: int = 3
    initial_backoff: timedelta = timedelta(seconds=5)
    max_backoff: timedelta = timedelta(minutes=10)
    jitter: float = 0.2


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed attempt."""

    reason: Reason.ValueType
    exit_code: int | None = None
    # Those of `log_patterns` that were found in what it printed.
    found: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do."""

    action: RetryRule.Action.ValueType
    backoff: timedelta = timedelta(0)
    memory_factor: float = 1.0
    wall_factor: float = 1.0

    @property
    def again(self) -> bool:
        """Whether there is another attempt."""
        return self.action not in (RetryRule.ACTION_FAIL, RetryRule.ACTION_HOLD)

    @property
    def counts(self) -> bool:
        """Whether the failed attempt uses up one of the policy's."""
        return self.action != RetryRule.ACTION_RETRY_UNCOUNTED


@dataclass(frozen=True, slots=True)
class Avoided:
    """Where a job is not to run again."""

    backends: frozenset[str] = frozenset()
    # By backend.
    nodes: Mapping[str, Sequence[str]] = field(default_factory=dict)


def avoided(policy: RetryPolicy, attempts: Iterable[Attempt]) -> Avoided:
    """Where the attempts of a job failed, as far as its policy avoids that; preemption is nobody's fault."""
    failed = [one for one in attempts if one.state == JobState.JOB_STATE_FAILED and one.reason not in _UNCOUNTED]
    nodes: dict[str, dict[str, None]] = {}
    for one in failed:
        if policy.avoid_failed_nodes and one.node:
            nodes.setdefault(one.backend, {})[one.node] = None
    backends = frozenset(one.backend for one in failed if policy.avoid_failed_backend)
    return Avoided(backends, {backend: tuple(some) for backend, some in nodes.items()})


def log_patterns(policy: RetryPolicy, reason: Reason.ValueType, exit_code: int | None) -> list[str]:
    """Regular expressions of the rules that depend on what was printed."""
    failure = Failure(reason, exit_code)
    return list(dict.fromkeys(rule.log_regex for rule in policy.rules if rule.log_regex and _fits(rule, failure)))


def decide(
    policy: RetryPolicy, failure: Failure, counted: int, attempt: int, defaults: Defaults, job: str = ""
) -> Decision:
    """Choose by the first rule that matches, else by the default.

    `counted` attempts counted before this one, which has the number `attempt`; `job` sets its pause off from others'.
    """
    rule = next((rule for rule in policy.rules if _matches(rule, failure)), None)
    action = rule.action if rule is not None else _default_action(failure.reason)
    if action in (RetryRule.ACTION_FAIL, RetryRule.ACTION_HOLD):
        return Decision(action)
    counts = action != RetryRule.ACTION_RETRY_UNCOUNTED
    if counts and counted + 1 >= (policy.max_attempts or defaults.max_attempts):
        return Decision(RetryRule.ACTION_FAIL)
    memory, wall = _growth(rule, failure.reason) if action == RetryRule.ACTION_GROW_AND_RETRY else (1.0, 1.0)
    return Decision(action, _backoff(policy, attempt, defaults, job), memory, wall)


def _matches(rule: RetryRule, failure: Failure) -> bool:
    return _fits(rule, failure) and (not rule.log_regex or rule.log_regex in failure.found)


def _fits(rule: RetryRule, failure: Failure) -> bool:
    """Whether all holds but what it wants to have been printed."""
    if rule.reasons and failure.reason not in rule.reasons:
        return False
    return not rule.exit_codes or failure.exit_code in rule.exit_codes


def _default_action(reason: Reason.ValueType) -> RetryRule.Action.ValueType:
    if reason in _UNCOUNTED:
        return RetryRule.ACTION_RETRY_UNCOUNTED
    if 400 <= reason < 500 or reason in _PASSING_DATA:
        return RetryRule.ACTION_RETRY
    return RetryRule.ACTION_FAIL


def _growth(rule: RetryRule | None, reason: Reason.ValueType) -> tuple[float, float]:
    """Factors on memory and wall time: the one whose limit was met grows; for other reasons memory does."""
    if rule is None:
        return 1.0, 1.0
    if reason in (Reason.REASON_LIMIT_WALL, Reason.REASON_LIMIT_CPU):
        return 1.0, rule.grow_wall or _DEFAULT_GROWTH
    return rule.grow_memory or _DEFAULT_GROWTH, 1.0


def _backoff(policy: RetryPolicy, attempt: int, defaults: Defaults, job: str) -> timedelta:
    first = span(policy.initial_backoff) if policy.HasField("initial_backoff") else defaults.initial_backoff
    longest = span(policy.max_backoff) if policy.HasField("max_backoff") else defaults.max_backoff
    # 100 ** 64 pauses are longer than anything; more would overflow.
    times = min(policy.multiplier or 2.0, 100.0) ** min(attempt - 1, 64)
    pause = timedelta(seconds=min(longest.total_seconds(), first.total_seconds() * times))
    jitter = policy.jitter if policy.HasField("jitter") else defaults.jitter
    return pause * (1 - jitter * _drawn(f"{job} {attempt}"))


def _drawn(seed: str) -> float:
    """A number from 0 to 1, evenly spread over seeds and the same for the same one."""
    return int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8]) / 2**64
