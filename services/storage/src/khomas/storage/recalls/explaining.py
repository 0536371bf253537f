"""Why a recall waits or failed, what would change it and who can."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from khomas.api.common.v1 import explanation_pb2
from khomas.api.storage.v1 import recall_pb2 as pb
from khomas.storage.recalls.messages import State, word

Remedy = explanation_pb2.Remedy
_ITSELF = Remedy(who="nobody: it resolves itself", action="Wait: it goes on by itself.")
_CANCEL = Remedy(who="you", action="Take it back.", command="khomas recall cancel {name}")
_AGAIN = Remedy(who="you", action="Ask for the file again.", command="khomas recall {file}")
_COPIES = Remedy(who="you", action="Look where other copies are.", command="khomas find {file}")

_REMEDIES: Mapping[int, Sequence[Remedy]] = {
    pb.RECALL_REASON_GATHERING: (_ITSELF,),
    pb.RECALL_REASON_TAPE_QUEUE: (
        Remedy(who="nobody: it resolves itself", action="It comes when the files before it have."),
        _CANCEL,
    ),
    pb.RECALL_REASON_FRONT_END: (
        Remedy(who="site", action="Bring the front end of {element} back; recalls go on by themselves then."),
        _CANCEL,
    ),
    pb.RECALL_REASON_TAPE_ERROR: (_ITSELF, Remedy(who="site", action="See why {element} cannot read it."), _COPIES),
    pb.RECALL_REASON_LOST: (_COPIES, Remedy(who="site", action="Look for the file on the tapes of {element}.")),
    pb.RECALL_REASON_CREDENTIAL: (Remedy(who="operator", action="Renew the credential of the storage service."),),
    pb.RECALL_REASON_CONFIGURATION: (
        Remedy(who="operator", action="Give {element} an access point that can recall: option tape of root."),
    ),
    pb.RECALL_REASON_CANCELLED: (_AGAIN,),
}


def explanation(recall: pb.Recall, due: datetime | None, before: int) -> explanation_pb2.Explanation:
    """Explain a recall; `before` were asked earlier and have not come yet."""
    answer = explanation_pb2.Explanation(
        subject=recall.name,
        state=State.Name(recall.state).removeprefix("STATE_"),
        reason=word(recall.reason),
        summary=_summary(recall, before),
        since=recall.state_time,
        remedies=[_filled(one, recall) for one in _REMEDIES.get(recall.reason, ())],
    )
    if due is not None:
        answer.next_check_time.FromDatetime(due)
    return answer


def _summary(recall: pb.Recall, before: int) -> str:
    what = f"{recall.file} ({recall.size_bytes} bytes) at {recall.storage_element}"
    trouble = f": {word(recall.reason)}, {recall.message}" if recall.message else ""
    match recall.state:
        case State.STATE_WAITING:
            return f"{what} waits until the tape system is asked for it{trouble}."
        case State.STATE_REQUESTED:
            place = f"place {recall.queue_position} in its queue" if recall.queue_position else f"{before} before it"
            guessed = ", counted from our own requests" if recall.position_estimated else ""
            return f"{what} is to come from tape, request {recall.request}, {place}{guessed}{trouble}."
        case State.STATE_ONLINE:
            return f"{what} is on disk until {recall.pin_time.ToJsonString()}."
        case State.STATE_RELEASED:
            return f"{what} was on disk, and need not stay there any more."
        case State.STATE_CANCELLED:
            return f"{what} was taken back."
    return f"{what} was given up{trouble}."


def _filled(remedy: Remedy, recall: pb.Recall) -> Remedy:
    # Not str.format: an LFN may hold braces.
    def fill(text: str) -> str:
        filled = text.replace("{element}", recall.storage_element).replace("{name}", recall.name)
        return filled.replace("{file}", recall.file)

    return Remedy(who=remedy.who, action=fill(remedy.action), command=fill(remedy.command))
