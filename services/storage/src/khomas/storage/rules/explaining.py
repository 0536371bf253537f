"""Why a rule is not satisfied, what would change it and who can."""

from collections.abc import Mapping
from datetime import timedelta

from khomas.api.common.v1 import explanation_pb2
from khomas.api.storage.v1 import rule_pb2 as pb

Remedy = explanation_pb2.Remedy
# Reason to (how many, one of the files, one of the messages).
Reasons = Mapping[int, tuple[int, str, str]]

_SENTENCES: Mapping[int, str] = {
    pb.COPY_REASON_NO_ELEMENT: "no StorageElement that matches takes files",
    pb.COPY_REASON_TOO_FEW_ELEMENTS: "fewer StorageElements match than copies are wanted",
    pb.COPY_REASON_NO_SPACE: "none of those that match has the space",
    pb.COPY_REASON_NO_SOURCE: "no good copy is left to copy from",
    pb.COPY_REASON_TRANSFERS_FAILED: "transfers have failed to every place that matches",
}
_REMEDIES: Mapping[int, tuple[Remedy, ...]] = {
    pb.COPY_REASON_NO_ELEMENT: (
        Remedy(who="operator", action="Let one of them take files again, or make another one.", command="khomas se ls"),
    ),
    pb.COPY_REASON_TOO_FEW_ELEMENTS: (
        Remedy(who="you", action="Want fewer copies.", command="khomas rule update {rule} --copies N"),
        Remedy(who="operator", action="Make another StorageElement that matches, or label one."),
    ),
    pb.COPY_REASON_NO_SPACE: (
        Remedy(who="site", action="Make room, or raise the capacity of one of them.", command="khomas se ls"),
        Remedy(who="you", action="End rules that are not needed any more.", command="khomas rule ls"),
    ),
    pb.COPY_REASON_NO_SOURCE: (
        Remedy(who="you", action="Bring the file in again from its producer.", command="khomas dir {file}"),
    ),
    pb.COPY_REASON_TRANSFERS_FAILED: (
        Remedy(who="operator", action="See why they have failed.", command="khomas transfer ls"),
        Remedy(who="nobody: it resolves itself", action="All places are tried again after a pause."),
    ),
}


def in_short(reasons: Reasons) -> str:
    """Return what stands in the way as one sentence."""
    parts = [f"{count} x {_SENTENCES.get(reason, 'unknown')}" for reason, (count, _, _) in _by_count(reasons)]
    return "; ".join(parts)


def explanation(rule: pb.ReplicationRule, reasons: Reasons, pause: timedelta) -> explanation_pb2.Explanation:
    """Explain a rule: the reason of most of its stuck copies first."""
    ordered = _by_count(reasons)
    answer = explanation_pb2.Explanation(
        subject=rule.name,
        state=pb.ReplicationRule.State.Name(rule.state).removeprefix("STATE_"),
        reason=_word(ordered[0][0]) if ordered else "",
        summary=_summary(rule, reasons),
        remedies=[
            Remedy(who=remedy.who, action=remedy.action, command=_filled(remedy.command, rule.name, file))
            for reason, (_, file, _) in ordered
            for remedy in _REMEDIES.get(reason, ())
        ],
        details=[_detail(reason, *found) for reason, found in ordered],
    )
    if rule.state == pb.ReplicationRule.STATE_SUSPENDED:
        resume = f"khomas rule update {rule.name} --resume"
        answer.remedies.add(who="you", action="Let it go on.", command=resume)
    elif rule.state == pb.ReplicationRule.STATE_REPLICATING:
        answer.remedies.add(who="nobody: it resolves itself", action="Its transfers are on their way.")
    answer.since.CopyFrom(rule.state_time)
    if ordered:
        answer.next_check_time.FromDatetime(rule.state_time.ToDatetime() + pause)
    return answer


def _by_count(reasons: Reasons) -> list[tuple[int, tuple[int, str, str]]]:
    return sorted(reasons.items(), key=lambda item: -item[1][0])


def _word(reason: int) -> str:
    return pb.CopyReason.Name(pb.CopyReason.ValueType(reason)).removeprefix("COPY_REASON_")


def _summary(rule: pb.ReplicationRule, reasons: Reasons) -> str:
    counts, wanted = rule.counts, rule.counts.files * rule.copies
    text = f"{counts.ok_copies} of {wanted} copies of {counts.files} files are there"
    if counts.replicating_copies:
        text += f", {counts.replicating_copies} are on their way"
    if counts.missing_bytes:
        text += f", {counts.missing_bytes} bytes are to come"
    return f"{text}; {in_short(reasons)}." if reasons else f"{text}."


def _detail(reason: int, count: int, file: str, message: str) -> str:
    said = f": {message}" if message else ""
    return f"{_word(reason)}, {count} copies, for example of {file}{said}"


def _filled(command: str, rule: str, file: str) -> str:
    # Not str.format: an LFN may hold braces.
    return command.replace("{rule}", rule).replace("{file}", file.rpartition("/")[0] or "/")
