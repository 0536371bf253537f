"""What is wrong with a file on a StorageElement, what would change it and who can."""

from collections.abc import Mapping, Sequence

from khomas.api.common.v1 import explanation_pb2
from khomas.api.storage.v1 import incident_pb2 as pb

Remedy = explanation_pb2.Remedy
_ITSELF = Remedy(who="nobody: it resolves itself", action="Wait: the repair is tried again by itself.")
_APPLY = "khomas incident apply {id} --repair {repair} --reason WHY"
_DONE: Mapping[int, str] = {
    pb.REPAIR_VERIFY: "Read it again, byte by byte.",
    pb.REPAIR_COPY: "Bring a good copy from another StorageElement; what is bad is deleted only after.",
    pb.REPAIR_REGISTER: "Read it; if it is what the catalogue knows by this name, make it a replica.",
    pb.REPAIR_QUARANTINE: "Move it aside, to .khomas/quarantine.",
    pb.REPAIR_DELETE: "Delete it, if it is still the same and still unknown.",
    pb.REPAIR_DECLARE_LOST: "Take the replica out of the catalogue; what lies there is moved aside.",
    pb.REPAIR_DISMISS: "Leave it as it is.",
    pb.REPAIR_RESTORE: "Move it back to where it was; the next comparison judges it anew.",
    pb.REPAIR_DISCARD: "Delete it from the quarantine.",
}
_KNOWN = (pb.REPAIR_VERIFY, pb.REPAIR_COPY, pb.REPAIR_DECLARE_LOST, pb.REPAIR_DISMISS)
_UNKNOWN = (pb.REPAIR_REGISTER, pb.REPAIR_QUARANTINE, pb.REPAIR_DELETE, pb.REPAIR_DISMISS)
_ASIDE = (pb.REPAIR_RESTORE, pb.REPAIR_DISCARD)


def explanation(incident: pb.Incident) -> explanation_pb2.Explanation:
    """Explain an incident."""
    answer = explanation_pb2.Explanation(
        subject=incident.name,
        state=pb.Incident.State.Name(incident.state).removeprefix("STATE_"),
        reason=pb.Incident.Kind.Name(incident.kind).removeprefix("KIND_"),
        summary=_summary(incident),
        remedies=_remedies(incident),
        details=list(_details(incident)),
    )
    answer.since.CopyFrom(incident.create_time)
    if incident.HasField("next_attempt_time"):
        answer.next_check_time.CopyFrom(incident.next_attempt_time)
    return answer


def _summary(incident: pb.Incident) -> str:
    where = f"{incident.path} on {incident.storage_element}"
    wanted, found = incident.expected_size_bytes, incident.found_size_bytes
    match incident.kind:
        case pb.Incident.KIND_LOST:
            return f"{where} is not there; the catalogue has {wanted} bytes."
        case pb.Incident.KIND_DARK:
            return f"{where} ({found} bytes) is in no catalogue."
        case pb.Incident.KIND_SIZE:
            return f"{where} has {found} bytes; the catalogue says {wanted}."
        case pb.Incident.KIND_CHECKSUM:
            return f"{where} has adler32 {incident.found_adler32}; the catalogue says {incident.expected_adler32}."
        case pb.Incident.KIND_UNREADABLE:
            return f"{where} cannot be read: {incident.message}"
    return f"{where} is SUSPECT; nobody has read it since."


def _details(incident: pb.Incident) -> Sequence[str]:
    details = [f"Seen by {incident.origin}."]
    if incident.message:
        details.append(f"{incident.message[0].upper()}{incident.message[1:]}")
    if incident.requester:
        repair = pb.Repair.Name(incident.repair).removeprefix("REPAIR_")
        details.append(f"{incident.requester} has decided: {repair}. {incident.reason}".rstrip())
    if incident.transfer:
        details.append(f"{incident.transfer} brings a copy: khomas why {incident.transfer}")
    if incident.quarantine_path:
        details.append(f"It lies at {incident.quarantine_path}.")
    return details


def _remedies(incident: pb.Incident) -> Sequence[Remedy]:
    if incident.state == pb.Incident.STATE_REPAIRING:
        return [_ITSELF]
    if incident.state != pb.Incident.STATE_OPEN:
        return [_remedy(incident, repair) for repair in _ASIDE] if incident.quarantine_path else []
    proposal = incident.proposed_repair
    rest = _UNKNOWN if incident.kind == pb.Incident.KIND_DARK else _KNOWN
    order = [proposal, *(repair for repair in rest if repair != proposal)]
    return [_remedy(incident, repair) for repair in order if repair]


def _remedy(incident: pb.Incident, repair: pb.Repair.ValueType) -> Remedy:
    word = pb.Repair.Name(repair).removeprefix("REPAIR_")
    command = _APPLY.format(id=incident.name, repair=word)
    return Remedy(who="operator", action=_DONE[repair], command=command)
