"""Why an adoption waits or failed, what would change it and who can."""

from collections.abc import Mapping, Sequence

from khomas.api.catalog.v1 import adoption_pb2 as pb
from khomas.api.common.v1 import explanation_pb2
from khomas.kit.database import AnyRow

Remedy = explanation_pb2.Remedy
_AGAIN = Remedy(
    who="you",
    action="Then adopt it again with the options of before; what is in the catalogue already is left as it is.",
    command="khomas adopt start {element} {destination}",
)
_UNDO = Remedy(who="you", action="Or take out what was adopted.", command="khomas adopt undo {id}")
_REMEDIES: Mapping[int, Sequence[Remedy]] = {
    pb.ADOPTION_REASON_STORAGE_AWAY: (
        Remedy(who="nobody: it resolves itself", action="Wait: it goes on when the storage answers."),
        Remedy(who="operator", action="Look whether the storage service and {element} are up.", command="khomas se ls"),
    ),
    pb.ADOPTION_REASON_STORAGE_REFUSED: (
        Remedy(who="operator", action="See what {element} has against it.", command="khomas se ls"),
        _AGAIN,
        _UNDO,
    ),
    pb.ADOPTION_REASON_FILE_REFUSED: (
        Remedy(who="you", action="Mend what the problem says; --declare declares missing metadata keys."),
        _AGAIN,
        _UNDO,
    ),
}


def explanation(adoption: pb.Adoption, row: AnyRow) -> explanation_pb2.Explanation:
    """Explain an adoption with its row."""
    reason = pb.AdoptionReason.ValueType(row.reason)
    return explanation_pb2.Explanation(
        subject=adoption.name,
        state=pb.Adoption.State.Name(adoption.state).removeprefix("STATE_"),
        reason=pb.AdoptionReason.Name(reason).removeprefix("ADOPTION_REASON_") if reason else "",
        summary=_summary(adoption, row),
        since=(row.reason_time if reason else row.end_time) or row.create_time,
        remedies=[_filled(one, adoption) for one in _REMEDIES.get(reason, ())],
        details=[one for one in adoption.problems if one != row.reason_message],
    )


def _summary(adoption: pb.Adoption, row: AnyRow) -> str:
    figures = (
        f"{adoption.adopted_files} files ({adoption.adopted_bytes} bytes) of {adoption.storage_element} are adopted "
        f"below {adoption.destination}, {adoption.known_files} were known"
    )
    match adoption.state:
        case pb.Adoption.STATE_RUNNING if row.reason:
            return f"It waits: {row.reason_message} Up to now {figures}."
        case pb.Adoption.STATE_RUNNING:
            return f"It is under way: {figures}."
        case pb.Adoption.STATE_FAILED:
            trouble = row.reason_message or " ".join(adoption.problems[-1:])
            return f"{trouble} Before that {figures}."
        case pb.Adoption.STATE_UNDONE:
            return "Its files were taken out of the catalogue again; the bytes were never touched."
    return f"{figures[0].upper()}{figures[1:]}."


def _filled(remedy: Remedy, adoption: pb.Adoption) -> Remedy:
    values = {
        "id": adoption.name.partition("/")[2],
        "element": adoption.storage_element,
        "destination": adoption.destination,
    }
    return Remedy(who=remedy.who, action=remedy.action.format_map(values), command=remedy.command.format_map(values))
