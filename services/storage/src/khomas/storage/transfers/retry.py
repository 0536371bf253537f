"""When a failed transfer is tried again."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from khomas.api.storage.v1 import transfer_pb2 as pb

State = pb.Transfer.State
Reason = pb.TransferReason

# Another try would end in the same way.
_FINAL = frozenset(
    {
        pb.TRANSFER_REASON_NO_SOURCE,
        pb.TRANSFER_REASON_CONFIGURATION,
        pb.TRANSFER_REASON_CANCELLED,
        pb.TRANSFER_REASON_DEADLINE,
    }
)
# Somebody has to do something first.
_SLOW = frozenset({pb.TRANSFER_REASON_SPACE, pb.TRANSFER_REASON_CREDENTIAL})
_SLOWNESS: Final = 10
# Reading from elsewhere may help.
OF_THE_SOURCE = frozenset({pb.TRANSFER_REASON_SOURCE, pb.TRANSFER_REASON_SOURCE_CHECKSUM})
# Say something about the link, and not about the file or about us.
OF_THE_LINK = OF_THE_SOURCE | {
    pb.TRANSFER_REASON_TRANSIENT,
    pb.TRANSFER_REASON_DESTINATION,
    pb.TRANSFER_REASON_DESTINATION_CHECKSUM,
}


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
    reason: pb.TransferReason.ValueType,
    attempt: int,
    max_attempts: int,
    policy: Policy,
    now: datetime,
    *,
    elsewhere: bool = False,
    deadline: datetime | None = None,
) -> Verdict:
    """Return what follows when attempt number `attempt` has ended with this reason; UNSPECIFIED is success.

    `elsewhere`: another copy is there that no attempt has tried to read.
    """
    if reason == pb.TRANSFER_REASON_UNSPECIFIED:
        return Verdict(pb.Transfer.STATE_SUCCEEDED, reason, now)
    if reason == pb.TRANSFER_REASON_ON_TAPE:
        # Whoever recalls the file brings the next attempt forward.
        return _waiting(now + policy.max_pause, deadline, now)
    if reason in _FINAL or attempt >= (max_attempts or policy.attempts):
        return Verdict(pb.Transfer.STATE_FAILED, reason, now)
    again = now + _pause(reason, attempt, policy, elsewhere=elsewhere)
    if deadline is not None and again > deadline:
        return Verdict(pb.Transfer.STATE_FAILED, pb.TRANSFER_REASON_DEADLINE, now)
    return Verdict(pb.Transfer.STATE_WAITING, pb.TRANSFER_REASON_BACKOFF, again)


def _waiting(again: datetime, deadline: datetime | None, now: datetime) -> Verdict:
    # The end of its time is looked for then.
    until = again if deadline is None else max(now, min(again, deadline))
    return Verdict(pb.Transfer.STATE_WAITING, pb.TRANSFER_REASON_BACKOFF, until)


def _pause(reason: pb.TransferReason.ValueType, attempt: int, policy: Policy, *, elsewhere: bool) -> timedelta:
    if reason == pb.TRANSFER_REASON_SOURCE_CHECKSUM or (reason in OF_THE_SOURCE and elsewhere):
        # The next attempt reads another copy, so nothing speaks for waiting.
        return timedelta(0)
    doubled: timedelta = policy.pause * 2 ** min(attempt - 1, 20)
    return min(doubled * (_SLOWNESS if reason in _SLOW else 1), policy.max_pause)
