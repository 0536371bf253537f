"""When a failed transfer is tried again."""

from datetime import UTC, datetime, timedelta

import pytest

from khomas.api.storage.v1 import transfer_pb2 as pb
from khomas.storage.transfers.retry import Policy, verdict

NOW = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = Policy(attempts=5, pause=timedelta(seconds=30), max_pause=timedelta(hours=1))
REASONS = [value for value in pb.TransferReason.values() if value >= pb.TRANSFER_REASON_TRANSIENT]


def pause(reason: pb.TransferReason.ValueType, attempt: int) -> float:
    return (verdict(reason, attempt, 100, POLICY, NOW).next_attempt_time - NOW).total_seconds()


def test_success_is_final() -> None:
    assert verdict(pb.TRANSFER_REASON_UNSPECIFIED, 1, 0, POLICY, NOW).state == pb.Transfer.STATE_SUCCEEDED


@pytest.mark.parametrize("reason", ["NO_SOURCE", "CONFIGURATION", "CANCELLED"])
def test_hopeless_reasons_are_not_tried_again(reason: str) -> None:
    said = verdict(pb.TransferReason.Value(f"TRANSFER_REASON_{reason}"), 1, 0, POLICY, NOW)

    assert said.state == pb.Transfer.STATE_FAILED


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_is_given_up_after_the_last_attempt(reason: pb.TransferReason.ValueType) -> None:
    assert verdict(reason, 5, 0, POLICY, NOW).state == pb.Transfer.STATE_FAILED
    assert verdict(reason, 2, 2, POLICY, NOW).state == pb.Transfer.STATE_FAILED


def test_pauses_double_up_to_the_longest() -> None:
    assert [pause(pb.TRANSFER_REASON_TRANSIENT, attempt) for attempt in (1, 2, 3, 20)] == [30, 60, 120, 3600]


def test_waiting_for_people_is_slow_and_another_copy_is_read_at_once() -> None:
    assert pause(pb.TRANSFER_REASON_SPACE, 1) == pause(pb.TRANSFER_REASON_CREDENTIAL, 1) == 300
    assert pause(pb.TRANSFER_REASON_SOURCE_CHECKSUM, 1) == 0
