"""How far one try of a repair has come."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row

from khomas.api.storage.v1 import incident_pb2 as pb


@dataclass(frozen=True, slots=True)
class Step:
    """The new state of an incident after one try."""

    row: Row[Any]
    state: pb.Incident.State.ValueType
    message: str
    # The pause grows with every failure.
    failed: bool = False
    # None = as before.
    transfer: str | None = None
    # None = as before.
    quarantine_path: str | None = None


def again(row: Row[Any], message: str) -> Step:
    """Try again after a pause that grows."""
    return Step(row, pb.Incident.STATE_REPAIRING, message, failed=True)


def afresh(row: Row[Any], message: str) -> Step:
    """Begin again after a pause that grows: what was done did not help."""
    return Step(row, pb.Incident.STATE_REPAIRING, message, failed=True, transfer="")


def waiting(row: Row[Any], message: str, transfer: str | None = None) -> Step:
    """Look again soon: something else is under way."""
    return Step(row, pb.Incident.STATE_REPAIRING, message, transfer=transfer)


def resolved(row: Row[Any], message: str, quarantine_path: str | None = None) -> Step:
    """End it."""
    return Step(row, pb.Incident.STATE_RESOLVED, message, quarantine_path=quarantine_path)


def undecided(row: Row[Any], message: str) -> Step:
    """Ask somebody: this repair does not help."""
    return Step(row, pb.Incident.STATE_OPEN, message, transfer="")
