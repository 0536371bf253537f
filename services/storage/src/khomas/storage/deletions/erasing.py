"""Deletes the bytes of many files of one storage, and believes only what it sees afterwards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from khomas.api.storage.v1 import transfer_pb2 as pb
from khomas.kit.errors import DomainError
from khomas.storage.elements.elements import Element, Protocols
from khomas.storage.errors import StorageElementUnreachable
from khomas.storage.protocols.interface import Entry, Problem, ProtocolFault

Reason = pb.DeletionReason
_REASONS: Mapping[Problem, pb.DeletionReason.ValueType] = {
    Problem.UNREACHABLE: pb.DELETION_REASON_UNREACHABLE,
    Problem.CREDENTIAL: pb.DELETION_REASON_CREDENTIAL,
    Problem.CONFIGURATION: pb.DELETION_REASON_CONFIGURATION,
    Problem.UNSUPPORTED: pb.DELETION_REASON_CONFIGURATION,
    Problem.REFUSED: pb.DELETION_REASON_REFUSED,
    Problem.TAKEN: pb.DELETION_REASON_REFUSED,
}
# Somebody has to do something first.
_SLOW: Final = frozenset({pb.DELETION_REASON_REFUSED, pb.DELETION_REASON_CREDENTIAL, pb.DELETION_REASON_CONFIGURATION})
_SLOWNESS: Final = 10
_MAX_PAUSE: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Left:
    """Why a file is not gone."""

    reason: pb.DeletionReason.ValueType
    message: str


async def erased(protocols: Protocols, element: Element, paths: Sequence[str]) -> list[Left | None]:
    """Delete files; None for each that is not there any more, by the storage's own listing of it."""
    try:
        # One question instead of a time-out for every file.
        await protocols.room(element)
        protocol = protocols.of(element)
        faults = await protocol.delete(paths)
        entries = await protocol.stat(paths)
    except StorageElementUnreachable as error:
        return [Left(pb.DELETION_REASON_UNREACHABLE, error.message)] * len(paths)
    except DomainError as error:
        return [Left(pb.DELETION_REASON_CONFIGURATION, error.message)] * len(paths)
    except ProtocolFault as fault:
        return [_left(fault)] * len(paths)
    return [_judged(fault, entry) for fault, entry in zip(faults, entries, strict=True)]


def pause(reason: pb.DeletionReason.ValueType, attempts: int, first: timedelta) -> timedelta:
    """Return how long to wait after a try that has failed for this reason."""
    doubled: timedelta = first * 2 ** min(attempts, 10)
    return min(doubled * (_SLOWNESS if reason in _SLOW else 1), _MAX_PAUSE)


def _judged(fault: ProtocolFault | None, entry: Entry | ProtocolFault) -> Left | None:
    if isinstance(entry, ProtocolFault):
        return None if entry.problem is Problem.ABSENT else _left(entry)
    if fault is not None:
        return _left(fault)
    return Left(pb.DELETION_REASON_STILL_THERE, "the storage says that it is deleted, and shows it still")


def _left(fault: ProtocolFault) -> Left:
    return Left(_REASONS.get(fault.problem, pb.DELETION_REASON_TRANSIENT), fault.message)
