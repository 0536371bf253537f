"""Why a transfer waits or failed, what would change it and who can."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from khomas.api.common.v1 import explanation_pb2
from khomas.api.storage.v1 import transfer_pb2 as pb

Remedy = explanation_pb2.Remedy
_ITSELF = Remedy(who="nobody: it resolves itself", action="Wait for the next attempt.")
_AGAIN = Remedy(
    who="you", action="Ask for the transfer again.", command="khomas transfer create {file} --to {destination}"
)
_COPIES = Remedy(who="you", action="Look where copies are and in which state.", command="khomas find {file}")

_REMEDIES: Mapping[int, Sequence[Remedy]] = {
    pb.TRANSFER_REASON_QUEUED: (
        Remedy(who="nobody: it resolves itself", action="It runs when the transfers before it are done."),
        Remedy(
            who="operator",
            action="See what its link carries, and what bounds it.",
            command="khomas link ls --to {destination}",
        ),
        Remedy(who="operator", action="Raise transfer_workers of the storage service."),
    ),
    pb.TRANSFER_REASON_ON_TAPE: (
        Remedy(who="nobody: it resolves itself", action="It is copied as soon as it has come from tape."),
        Remedy(who="you", action="See how far that is.", command="khomas recall ls --filter 'file = \"{file}\"'"),
    ),
    pb.TRANSFER_REASON_TRANSIENT: (_ITSELF, _AGAIN),
    pb.TRANSFER_REASON_SOURCE: (_ITSELF, Remedy(who="site", action="See why the source cannot be read."), _COPIES),
    pb.TRANSFER_REASON_SOURCE_CHECKSUM: (
        _ITSELF,
        Remedy(who="operator", action="Replace the damaged copy; it is SUSPECT in the catalogue."),
        _COPIES,
    ),
    pb.TRANSFER_REASON_NO_SOURCE: (_COPIES, Remedy(who="you", action="Bring the file in again from its producer.")),
    pb.TRANSFER_REASON_DESTINATION: (
        Remedy(who="site", action="Make the destination reachable and writable."),
        _ITSELF,
    ),
    pb.TRANSFER_REASON_SPACE: (
        Remedy(who="site", action="Make room on {destination}, or raise its capacity."),
        Remedy(who="you", action="Take another destination or delete files there."),
    ),
    pb.TRANSFER_REASON_DESTINATION_CHECKSUM: (
        _ITSELF,
        Remedy(who="site", action="Check the disks and the network of {destination}."),
    ),
    pb.TRANSFER_REASON_CREDENTIAL: (Remedy(who="operator", action="Renew the credential of the storage service."),),
    pb.TRANSFER_REASON_CONFIGURATION: (
        Remedy(who="operator", action="Correct the StorageElements: their access points and protocols."),
    ),
    pb.TRANSFER_REASON_CANCELLED: (_AGAIN,),
    pb.TRANSFER_REASON_DEADLINE: (
        Remedy(who="you", action="Ask for the transfer again, with more time or a higher priority."),
        Remedy(
            who="operator",
            action="See whether the link is slow, or bounded.",
            command="khomas link ls --to {destination}",
        ),
    ),
}


def explanation(
    transfer: pb.Transfer, since: datetime, attempts: Sequence[pb.TransferAttempt]
) -> explanation_pb2.Explanation:
    """Explain a transfer. While it waits after a failure, the failure decides what would help."""
    cause = attempts[-1].reason if transfer.reason == pb.TRANSFER_REASON_BACKOFF and attempts else transfer.reason
    answer = explanation_pb2.Explanation(
        subject=transfer.name,
        state=pb.Transfer.State.Name(transfer.state).removeprefix("STATE_"),
        reason=_word(transfer.reason),
        summary=_summary(transfer, cause, len(attempts)),
        remedies=[_filled(remedy, transfer) for remedy in _REMEDIES.get(cause, ())],
        details=[_sentence(attempt) for attempt in attempts],
    )
    answer.since.FromDatetime(since)
    if transfer.HasField("next_attempt_time"):
        answer.next_check_time.CopyFrom(transfer.next_attempt_time)
    return answer


def _word(reason: pb.TransferReason.ValueType) -> str:
    return pb.TransferReason.Name(reason).removeprefix("TRANSFER_REASON_") if reason else ""


def _summary(transfer: pb.Transfer, cause: pb.TransferReason.ValueType, attempts: int) -> str:
    what = f"{transfer.file} ({transfer.size_bytes} bytes) to {transfer.destination}"
    match transfer.state:
        case pb.Transfer.STATE_SUCCEEDED:
            return f"{what} is done."
        case pb.Transfer.STATE_RUNNING:
            return f"{what} is being copied, attempt {attempts + 1}."
        case pb.Transfer.STATE_CANCELLED:
            return f"{what} was cancelled after {attempts} attempts."
        case pb.Transfer.STATE_FAILED:
            return f"{what} was given up after {attempts} attempts: {_word(cause)}, {transfer.message}"
    if not attempts:
        return f"{what} waits for its turn."
    return f"{what} waits after attempt {attempts}: {_word(cause)}, {transfer.message}"


def _filled(remedy: Remedy, transfer: pb.Transfer) -> Remedy:
    # Not str.format: an LFN may hold braces.
    def fill(text: str) -> str:
        return text.replace("{destination}", transfer.destination).replace("{file}", transfer.file)

    return Remedy(who=remedy.who, action=fill(remedy.action), command=fill(remedy.command))


def _sentence(attempt: pb.TransferAttempt) -> str:
    seconds = attempt.elapsed.seconds + attempt.elapsed.nanos / 1e9
    ended = f"{_word(attempt.reason)}, {attempt.message}" if attempt.reason else "succeeded"
    begin = f"Attempt {attempt.number} from {attempt.source or 'nowhere'}"
    held = pb.Bottleneck.Name(attempt.bottleneck).removeprefix("BOTTLENECK_").lower()
    bound = f", held up by: {held}" if attempt.bottleneck else ""
    return f"{begin}, {attempt.bytes} bytes in {seconds:.1f} s{bound}: {ended}"
