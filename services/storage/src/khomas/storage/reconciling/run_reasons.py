"""Why a comparison waits, is held or failed, what would change it and who can."""

from collections.abc import Mapping
from typing import Any

from khomas.api.common.v1 import explanation_pb2
from khomas.api.storage.v1 import reconciliation_pb2 as pb

Remedy = explanation_pb2.Remedy
_Run = pb.Reconciliation
_ITSELF = Remedy(who="nobody: it resolves itself", action="Wait: it is tried again by itself.")
_REMEDIES: Mapping[int, tuple[Remedy, ...]] = {
    pb.RECONCILIATION_REASON_QUEUED: (
        Remedy(who="nobody: it resolves itself", action="Wait: it is compared after those before it."),
    ),
    pb.RECONCILIATION_REASON_NOT_LISTED: (
        _ITSELF,
        Remedy(who="site", action="Bring {element} back.", command="khomas se ls"),
    ),
    pb.RECONCILIATION_REASON_MUCH_SEEMS_LOST: (
        Remedy(who="site", action="See whether {element} is mounted and shows its files.", command="khomas se ls"),
        Remedy(
            who="operator",
            action="If it was mounted wrongly, take the comparison back and compare again.",
            command="khomas se check {id} --cancel",
        ),
        Remedy(
            who="operator",
            action="If the files are lost, say so; incidents are opened then.",
            command="khomas se check {id} --release --reason WHY",
        ),
    ),
    pb.RECONCILIATION_REASON_GIVEN_UP: (
        Remedy(who="site", action="Bring {element} back.", command="khomas se ls"),
        Remedy(who="operator", action="Compare it again.", command="khomas se check {element} --mode {mode}"),
    ),
}


def explanation(run: pb.Reconciliation, row: Mapping[str, Any], before: int) -> explanation_pb2.Explanation:
    """Explain a comparison with its row; `before` are in the queue before it."""
    working = row["lease_owner"] is not None
    reason = _reason(run, row["attempts"], working)
    answer = explanation_pb2.Explanation(
        subject=run.name,
        state=_Run.State.Name(run.state).removeprefix("STATE_"),
        reason=pb.ReconciliationReason.Name(reason).removeprefix("RECONCILIATION_REASON_") if reason else "",
        summary=_summary(run, before, working),
        since=row["end_time"] or row["state_time"] or row["create_time"],
        remedies=[_filled(one, run) for one in _REMEDIES.get(reason, ())],
    )
    if reason == pb.RECONCILIATION_REASON_NOT_LISTED:
        answer.next_check_time.FromDatetime(row["next_attempt_time"])
        answer.details.append(f"It was tried {row['attempts']} times.")
    if run.release_note:
        answer.details.append(f"Released by {run.release_note}.")
    if run.unusable_names:
        answer.details.append(f"{run.unusable_names} files have names that no record can hold; rename them by hand.")
    return answer


def _reason(run: pb.Reconciliation, attempts: int, working: bool) -> pb.ReconciliationReason.ValueType:
    match run.state:
        case _Run.STATE_WAITING if not working:
            return pb.RECONCILIATION_REASON_NOT_LISTED if attempts else pb.RECONCILIATION_REASON_QUEUED
        case _Run.STATE_HELD:
            return pb.RECONCILIATION_REASON_MUCH_SEEMS_LOST
        case _Run.STATE_FAILED:
            return pb.RECONCILIATION_REASON_GIVEN_UP
    return pb.RECONCILIATION_REASON_UNSPECIFIED


def _summary(run: pb.Reconciliation, before: int, working: bool) -> str:
    what = f"The comparison of {run.storage_element} ({_mode(run)})"
    figures = f"{run.expected_files} files expected, {run.found_files} found, {run.verified_files} verified"
    match run.state:
        case _Run.STATE_WAITING if not working:
            trouble = f": {run.message}" if run.message else ""
            return f"{what} waits, {before} are before it{trouble}."
        case _Run.STATE_WAITING | _Run.STATE_RUNNING:
            phase = _Run.Phase.Name(run.phase).removeprefix("PHASE_").lower()
            return f"{what} is under way, phase {phase}: {figures}."
        case _Run.STATE_HELD:
            return f"{what} is held and has changed nothing: {run.message}."
        case _Run.STATE_FAILED:
            return f"{what} has failed and found nothing: {run.message}."
        case _Run.STATE_CANCELLED:
            return f"{what} was taken back."
    found = run.findings
    return (
        f"{what} has ended: {figures}; {found.lost} lost, {found.dark} dark, {found.size_differs} of another size, "
        f"{found.checksum_differs} of other content, {found.unreadable} unreadable."
    )


def _mode(run: pb.Reconciliation) -> str:
    return _Run.Mode.Name(run.mode).removeprefix("MODE_")


def _filled(remedy: Remedy, run: pb.Reconciliation) -> Remedy:
    values = {"id": run.name.partition("/")[2], "element": run.storage_element, "mode": _mode(run).lower()}
    return Remedy(who=remedy.who, action=remedy.action.format_map(values), command=remedy.command.format_map(values))
