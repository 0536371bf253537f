"""What was found, and what we would do about it: rules on values alone."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from khomas.api.catalog.v1 import file_pb2
from khomas.api.storage.v1 import incident_pb2 as pb
from khomas.storage.elements.elements import Element

Kind = pb.Incident.Kind
NOTHING: Final = -1

# What fits what was found. A repair that is not here fits everything.
_UNKNOWN_FILES = frozenset({pb.REPAIR_REGISTER, pb.REPAIR_QUARANTINE, pb.REPAIR_DELETE})
_KNOWN_FILES = frozenset({pb.REPAIR_VERIFY, pb.REPAIR_COPY, pb.REPAIR_DECLARE_LOST})
# What becomes of bytes that were moved aside.
ASIDE: Final = frozenset({pb.REPAIR_RESTORE, pb.REPAIR_DISCARD})
# What changes nothing but for the better, so that a policy may decide it.
SAFE: Final = frozenset({pb.REPAIR_VERIFY, pb.REPAIR_COPY})


@dataclass(frozen=True, slots=True)
class Finding:
    """One path that is not as the catalogue says; of a dark one `file` is what the catalogue knows by that name."""

    path: str
    kind: pb.Incident.Kind.ValueType
    file: file_pb2.File | None = None
    found_size_bytes: int = NOTHING
    found_adler32: str = ""
    modify_time: datetime | None = None
    message: str = ""


def fits(repair: pb.Repair.ValueType, kind: pb.Incident.Kind.ValueType) -> bool:
    """Tell whether a repair makes sense for what was found."""
    return repair not in (_KNOWN_FILES if kind == pb.Incident.KIND_DARK else _UNKNOWN_FILES)


def good_copies(file: file_pb2.File, element: str) -> Collection[str]:
    """Return the other StorageElements that have a copy which can be read."""
    return [
        one.storage_element
        for one in file.replicas
        if one.storage_element != element and one.state == file_pb2.Replica.STATE_AVAILABLE
    ]


def proposed(finding: Finding, element: Element) -> pb.Repair.ValueType:
    """Return what we would do."""
    file = finding.file
    if finding.kind == pb.Incident.KIND_DARK:
        if file is not None and file.size_bytes == finding.found_size_bytes and not _replica(file, element.id):
            return pb.REPAIR_REGISTER
        return pb.REPAIR_QUARANTINE
    if file is not None and good_copies(file, element.id) and element.takes_files:
        return pb.REPAIR_COPY
    return pb.REPAIR_VERIFY if finding.kind == pb.Incident.KIND_SUSPECT else pb.REPAIR_DECLARE_LOST


def suspect(file: file_pb2.File, element: str) -> file_pb2.Replica | None:
    """Return the replica there as it is to be noted while nobody may read it; None if that is known."""
    replica = _replica(file, element)
    if replica is None:
        return None
    changed = file_pb2.Replica()
    changed.CopyFrom(replica)
    changed.state = file_pb2.Replica.STATE_SUSPECT
    return changed


def _replica(file: file_pb2.File, element: str) -> file_pb2.Replica | None:
    """Return the replica there that is handed out."""
    for one in file.replicas:
        if one.storage_element == element and one.state == file_pb2.Replica.STATE_AVAILABLE:
            return one
    return None


def row_of(finding: Finding, element: Element, *, origin: str, automatic: bool, now: datetime) -> dict[str, Any]:
    """Return a new incident as a row of the table, still without its uid."""
    repair = proposed(finding, element)
    dark = finding.kind == pb.Incident.KIND_DARK
    decided = automatic and repair in SAFE
    known: Mapping[str, Any] = (
        {"file": "", "file_uid": "", "expected_size_bytes": NOTHING, "expected_adler32": ""}
        if dark or finding.file is None
        else {
            "file": finding.file.name,
            "file_uid": finding.file.uid,
            "expected_size_bytes": finding.file.size_bytes,
            "expected_adler32": finding.file.checksums.adler32,
        }
    )
    return {
        "uid": "",
        "open_key": open_key(element.id, finding.path),
        "storage_element": element.id,
        "path": finding.path,
        "kind": finding.kind,
        "state": pb.Incident.STATE_REPAIRING if decided else pb.Incident.STATE_OPEN,
        **known,
        "found_size_bytes": finding.found_size_bytes,
        "found_adler32": finding.found_adler32,
        "found_modify_time": finding.modify_time,
        "proposed_repair": repair,
        "repair": repair if decided else pb.REPAIR_UNSPECIFIED,
        "requester": "policy" if decided else "",
        "reason": "",
        "message": finding.message,
        "transfer": "",
        "quarantine_path": "",
        "attempts": 0,
        "next_attempt_time": now,
        "origin": origin,
        "create_time": now,
        "seen_time": now,
        "end_time": None,
    }


def open_key(element: str, path: str) -> str:
    """Return what two open incidents never have in common."""
    return f"{element} {path}"
