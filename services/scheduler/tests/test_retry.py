"""What happens after a failed attempt."""

from datetime import timedelta
from typing import Any

import protovalidate
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import ParseDict

from khomas.api.scheduler.v1.placement_pb2 import RetryPolicy, RetryRule
from khomas.api.scheduler.v1.state_pb2 import JobState, Reason
from khomas.scheduler.lifecycle.bounds import grown, grown_bytes, grown_span
from khomas.scheduler.lifecycle.retry import Avoided, Decision, Defaults, Failure, avoided, decide, log_patterns
from khomas.scheduler.records import Attempt

LOST = Reason.REASON_INFRA_NODE_FAILURE
FAIL, RETRY = RetryRule.ACTION_FAIL, RetryRule.ACTION_RETRY
UNCOUNTED = RetryRule.ACTION_RETRY_UNCOUNTED


def decision(policy: dict[str, Any], failure: Failure, counted: int = 0, attempt: int = 1) -> Decision:
    return decide(ParseDict(policy, RetryPolicy()), failure, counted, attempt, Defaults(jitter=0))


@pytest.mark.parametrize(
    ("reason", "action"),
    [
        (Reason.REASON_APP_EXIT_CODE, FAIL),
        (Reason.REASON_LIMIT_MEMORY, FAIL),
        (Reason.REASON_LIMIT_WALL, FAIL),
        (Reason.REASON_INFRA_NODE_FAILURE, RETRY),
        (Reason.REASON_INFRA_PREEMPTED, UNCOUNTED),
        (Reason.REASON_DATA_INPUT_MISSING, FAIL),
        (Reason.REASON_DATA_STAGE_IN, RETRY),
        (Reason.REASON_DATA_STAGE_OUT, RETRY),
        (Reason.REASON_DATA_CHECKSUM, RETRY),
        (Reason.REASON_DATA_REGISTER, FAIL),
    ],
)
def test_only_what_may_pass_is_tried_again_by_default(reason: Reason.ValueType, action: int) -> None:
    assert decision({}, Failure(reason)).action == action


@pytest.mark.parametrize(("counted", "action"), [(0, RETRY), (1, RETRY), (2, FAIL)])
def test_third_attempt_is_the_last_by_default(counted: int, action: int) -> None:
    assert decision({}, Failure(Reason.REASON_INFRA_NODE_FAILURE), counted).action == action


@pytest.mark.parametrize(("attempt", "seconds"), [(1, 5), (2, 10), (3, 20), (20, 600)])
def test_pauses_double_up_to_ten_minutes(attempt: int, seconds: int) -> None:
    policy = {"maxAttempts": 100, "jitter": 0}
    found = decision(policy, Failure(Reason.REASON_INFRA_NODE_FAILURE), 0, attempt)
    assert found.backoff == timedelta(seconds=seconds)


def pauses(policy: dict[str, Any], attempt: int = 1) -> list[float]:
    """In seconds, of a thousand jobs."""
    parsed, failure = ParseDict({"maxAttempts": 100, **policy}, RetryPolicy()), Failure(LOST)
    jobs = [f"job{number}" for number in range(1000)]
    return [decide(parsed, failure, 0, attempt, Defaults(), job).backoff.total_seconds() for job in jobs]


def test_jobs_that_failed_at_once_come_back_one_after_the_other_and_none_late() -> None:
    for policy, shortest in (({}, 4.0), ({"jitter": 0.5}, 2.5), ({"jitter": 1}, 0.0)):
        found = pauses(policy)
        assert found == pauses(policy)
        assert shortest <= min(found) < max(found) <= 5
        mean = sum(found) / len(found)
        assert abs(mean - (shortest + 5) / 2) < 0.1
        assert len(set(found)) > 990
    assert max(pauses({}, attempt=20)) <= 600
    assert set(pauses({"jitter": 0})) == {5.0}


def ended(backend: str, node: str, reason: Reason.ValueType = LOST, state: int = JobState.JOB_STATE_FAILED) -> Attempt:
    known = {"backend": backend, "node": node, "reason": reason, "state": state}
    return Attempt._make(known.get(name) for name in Attempt._fields)


def test_places_of_failed_attempts_are_avoided_where_the_policy_says_so() -> None:
    attempts = [
        ended("a", "n1"),
        ended("a", "n2"),
        ended("b", ""),
        ended("c", "n3", Reason.REASON_INFRA_PREEMPTED),
        ended("d", "n4", state=JobState.JOB_STATE_RUNNING),
    ]
    assert avoided(RetryPolicy(), attempts) == Avoided()
    assert avoided(RetryPolicy(avoid_failed_nodes=True), attempts) == Avoided(nodes={"a": ("n1", "n2")})
    assert avoided(RetryPolicy(avoid_failed_backend=True), attempts) == Avoided(frozenset({"a", "b"}))


@pytest.mark.parametrize(("jitter", "good"), [(-0.01, False), (0.0, True), (1.0, True), (1.01, False)])
def test_jitter_is_a_share(jitter: float, good: bool) -> None:
    assert (not protovalidate.collect_violations(RetryPolicy(jitter=jitter))) == good


def test_first_rule_that_matches_wins() -> None:
    rules = [
        {"exitCodes": [3], "action": "ACTION_HOLD"},
        {"reasons": ["REASON_APP_EXIT_CODE"], "action": "ACTION_RETRY"},
    ]
    assert decision({"rules": rules}, Failure(Reason.REASON_APP_EXIT_CODE, 3)).action == RetryRule.ACTION_HOLD
    assert decision({"rules": rules}, Failure(Reason.REASON_APP_EXIT_CODE, 4)).action == RETRY
    assert decision({"rules": rules}, Failure(Reason.REASON_APP_SIGNAL)).action == FAIL


def test_all_conditions_of_a_rule_must_hold() -> None:
    rule = {"exitCodes": [1], "logRegex": "cannot connect", "action": "ACTION_RETRY"}
    failure = Failure(Reason.REASON_APP_EXIT_CODE, 1, {"cannot connect"})
    assert decision({"rules": [rule]}, failure).action == RETRY
    assert decision({"rules": [rule]}, Failure(Reason.REASON_APP_EXIT_CODE, 1)).action == FAIL


def test_only_rules_that_depend_on_the_log_have_it_searched() -> None:
    rules: list[dict[str, Any]] = [
        {"exitCodes": [1], "logRegex": "a", "action": "ACTION_RETRY"},
        {"exitCodes": [2], "logRegex": "b", "action": "ACTION_RETRY"},
        {"logRegex": "a", "action": "ACTION_HOLD"},
        {"action": "ACTION_FAIL"},
    ]
    policy = ParseDict({"rules": rules}, RetryPolicy())
    assert log_patterns(policy, Reason.REASON_APP_EXIT_CODE, 1) == ["a"]


@pytest.mark.parametrize(
    "policy",
    [
        {"multiplier": 1e200, "maxBackoff": "3600s"},
        {"multiplier": "Infinity", "maxBackoff": "3600s"},
        {"initialBackoff": "315576000000s", "maxBackoff": "3600s"},
    ],
)
def test_pauses_of_policies_that_are_refused_today_are_bounded_too(policy: dict[str, Any]) -> None:
    found = decision({"maxAttempts": 100, **policy}, Failure(Reason.REASON_INFRA_NODE_FAILURE), 0, 80)
    assert found.backoff == timedelta(hours=1)


def test_longest_pause_is_ten_years() -> None:
    policy = {"initialBackoff": "315576000000s", "maxBackoff": "315576000000s"}
    assert decision(policy, Failure(Reason.REASON_INFRA_NODE_FAILURE)).backoff == timedelta(days=3650)


@pytest.mark.parametrize("factor", [1000.0, 1e308, float("inf"), float("nan")])
def test_memory_and_time_grow_a_thousand_times_at_most(factor: float) -> None:
    assert grown_bytes(1024, factor) == 1024 * 1000
    assert grown_span(Duration(seconds=60), factor) == timedelta(seconds=60_000)
    assert grown_span(Duration(seconds=315_576_000_000), factor) == timedelta(days=3650_000)
    assert grown(2.0, factor) == 1000.0


@pytest.mark.parametrize(
    ("reason", "memory", "wall"), [(Reason.REASON_LIMIT_MEMORY, 1.5, 1.0), (Reason.REASON_LIMIT_WALL, 1.0, 3.0)]
)
def test_the_limit_that_was_met_grows(reason: Reason.ValueType, memory: float, wall: float) -> None:
    found = decision({"rules": [{"action": "ACTION_GROW_AND_RETRY", "growWall": 3.0}]}, Failure(reason))
    assert (found.memory_factor, found.wall_factor) == (memory, wall)
