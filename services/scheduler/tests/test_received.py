"""What nodes and batch systems tell."""

import math
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from khomas.api.scheduler.v1.state_pb2 import Reason
from khomas.scheduler.backends import journal, received
from khomas.scheduler.backends.interface import Observation, Seen, State, Usage
from khomas.scheduler.storable import storable

MADE = {"output": 0, "path": "a.txt", "sandbox": True, "location": "sandbox/a.txt", "size_bytes": 1, "sha256": "00"}
GOOD = {
    "state": "SUCCEEDED",
    "reason": 0,
    "message": "",
    "exit_code": 0,
    "signal": None,
    "usage": {"wall_s": 1.5, "max_memory_bytes": 1024},
    "outputs": [MADE],
    "application_status": "half done",
    "host": "node01",
    "start_time": "2026-01-01T00:00:00Z",
}
SEEN = Observation("t", "n", Seen.PRESENT, State.SUCCEEDED, record=GOOD)


@pytest.mark.parametrize(
    ("text", "kept"),
    [("plain", "plain"), ("Höhe", "Höhe"), ("a\0b", "a\\x00b"), ("caf\udce9", "caf\\udce9"), ("", "")],
)
def test_text_is_kept_with_what_no_database_takes_written_out(text: str, kept: str) -> None:
    assert storable(text) == kept
    assert storable(kept) == kept


def test_long_text_is_cut() -> None:
    assert storable("a" * 100, 10) == "a" * 9 + "…"


def test_record_of_the_wrapper_stays_as_it_is() -> None:
    assert received.record(GOOD) == GOOD


@pytest.mark.parametrize(
    "told",
    [
        [],
        None,
        "FAILED",
        {},
        {"state": "NONSENSE"},
        {"state": ["SUCCEEDED"]},
        {**GOOD, "exit_code": 2**70},
        {**GOOD, "exit_code": "0"},
        {**GOOD, "reason": -(2**40)},
        {**GOOD, "usage": {"cpu_user_s": "much"}},
        {**GOOD, "usage": 3},
        {**GOOD, "outputs": 3},
        {**GOOD, "outputs": [{}]},
        {**GOOD, "outputs": [{**MADE, "size_bytes": -1}]},
        {**GOOD, "outputs": [{**MADE, "size_bytes": 2**64}]},
    ],
)
def test_record_that_makes_no_sense_is_a_failure_of_its_node(told: Any) -> None:
    record = received.record(told)

    assert (record["state"], record["reason"]) == ("FAILED", Reason.REASON_INFRA_ENVIRONMENT)
    assert record["outputs"] == []
    assert received.record(record)["message"] == record["message"]
    assert journal.final("t", told).state is State.FAILED


@pytest.mark.parametrize("path", ["caf\udce9.txt", "../../etc/a.txt", "/etc/a.txt", ""])
@pytest.mark.parametrize("name", ["path", "location"])
def test_output_that_can_be_neither_fetched_nor_named_fails_the_job(path: str, name: str) -> None:
    record = received.record({**GOOD, "outputs": [{**MADE, name: path}, MADE]})

    assert (record["state"], record["reason"]) == ("FAILED", Reason.REASON_APP_CHECK_FAILED)
    assert record["outputs"] == [MADE]


def test_job_that_has_failed_keeps_its_reason_and_the_files_with_good_names() -> None:
    failed = {**GOOD, "state": "FAILED", "reason": 200, "outputs": [MADE, {**MADE, "path": "caf\udce9.txt"}]}

    record = received.record(failed)

    assert (record["state"], record["reason"], record["outputs"]) == ("FAILED", 200, [MADE])


def test_words_of_the_payload_are_written_out() -> None:
    record = received.record({**GOOD, "message": "caf\udce9", "application_status": "a\0b"})

    assert (record["message"], record["application_status"]) == ("caf\\udce9", "a\\x00b")


@pytest.mark.parametrize(("told", "kept"), [(-1.0, 0.0), (math.nan, 0.0), (math.inf, 1e10), (1e300, 1e10), (2.5, 2.5)])
def test_usage_is_bounded(told: float, kept: float) -> None:
    record = received.record({**GOOD, "usage": {"cpu_user_s": told}})

    assert record["usage"] == {"cpu_user_s": kept}
    assert received.usage(Usage(cpu_user_s=told)) == Usage(cpu_user_s=kept)


def test_words_of_the_batch_system_are_written_out() -> None:
    odd = replace(SEEN, node="n\udce9", queue="q\0", native_state="R\0", start_time=datetime(2026, 1, 1))  # noqa: DTZ001

    seen = received.observation(odd)

    assert (seen.node, seen.queue, seen.native_state) == ("n\\udce9", "q\\x00", "R\\x00")
    assert seen.start_time == datetime(2026, 1, 1, tzinfo=UTC)


def test_state_is_that_of_the_record() -> None:
    assert received.observation(replace(SEEN, record={"state": "NONSENSE"})).state is State.FAILED


@pytest.mark.parametrize("beat", [{}, {"time": 3}, {"time": "soon"}, [], 7])
def test_sign_of_life_that_makes_no_sense_tells_nothing(beat: Any) -> None:
    assert journal.usage_so_far({"time": "2026-01-01T00:00:00Z"}, beat) is None


def test_usage_that_makes_no_sense_is_none() -> None:
    beat = {"time": "2026-01-01T00:00:10Z", "cpu_s": "much"}

    assert journal.usage_so_far({"time": "2026-01-01T00:00:00Z"}, beat) == Usage()
    assert journal.running("t", {"time": [], "host": 3}).node == "3"
