"""When a failed transfer is tried again."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from khomas.api.storage.v1 import transfer_pb2 as pb

State = pb.Transfer.State
Reason = pb.TransferReason

# Another try would end in the same way.
_FINAL = frozenset({pb.TRANSFER_REASON_NO_SOURCE, pb.TRANSFER_REASON_CONFIGURATION, pb.TRANSFER_REASON_CANCELLED})
# Somebody has to do something first.
_SLOW = frozenset({pb.TRANSFER_REASON_SPACE, pb.TRANSFER_REASON_CREDENTIAL})
_SLOWNESS = 10


@dataclass(frozen=True, slots=True)
class Policy:
    """How patient the service is."""

    attempts: int
    pause: timedelta
    max_pause: timedelta


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a transfer after an attempt."""

    state: pb.Transfer.State.ValueType
    reason: pb.TransferReason.ValueType
    next_attempt_time: datetime


def verdict(
    reason: pb.TransferReason.ValueType, attempt: int, max_attempts: int, policy: Policy, now: datetime
) -> Verdict:
    """Return what follows when attempt number `attempt` has ended with this reason; UNSPECIFIED is success."""
    if reason == pb.TRANSFER_REASON_UNSPECIFIED:
        return Verdict(pb.Transfer.STATE_SUCCEEDED, reason, now)
    if reason in _FINAL or attempt >= (max_attempts or policy.attempts):
        return Verdict(pb.Transfer.STATE_FAILED, reason, now)
    return Verdict(pb.Transfer.STATE_WAITING, pb.TRANSFER_REASON_BACKOFF, now + _pause(reason, attempt, policy))


def _pause(reason: pb.TransferReason.ValueType, attempt: int, policy: Policy) -> timedelta:
    if reason == pb.TRANSFER_REASON_SOURCE_CHECKSUM:
        # The next attempt reads another copy, so nothing speaks for waiting.
        return timedelta(0)
    doubled: timedelta = policy.pause * 2 ** min(attempt - 1, 20)
    return min(doubled * (_SLOWNESS if reason in _SLOW else 1), policy.max_pause)
