"""Why a work item is not processed, what would change it and who can."""

from collections.abc import Mapping

from khomas.api.bookkeeping.v1 import production_pb2 as pb
from khomas.api.common.v1 import explanation_pb2
from khomas.bookkeeping.stages import max_active_jobs, max_tries

Remedy = explanation_pb2.Remedy
_SUMMARIES: Mapping[int, str] = {
    pb.WORK_ITEM_REASON_UNSPECIFIED: "{what} were processed by {job}.",
    pb.WORK_ITEM_REASON_GROUP_GROWS: "{what} are there; more may join them.",
    pb.WORK_ITEM_REASON_WAIT_TURN: "{what} wait for a job{again}; {stage} has at most {max_active_jobs} at a time.",
    pb.WORK_ITEM_REASON_PAUSED: "{what} wait: the production is paused.",
    pb.WORK_ITEM_REASON_JOB_UNDER_WAY: "{job} works on {what}, try {tries} of {max_tries}.",
    pb.WORK_ITEM_REASON_MAX_TRIES: (
        "{tries} jobs have failed on {what}, as many as may be tried; the last one: {message}"
    ),
    pb.WORK_ITEM_REASON_FILE_DELETED: "One of {what} was deleted before it was processed. {message}",
    pb.WORK_ITEM_REASON_PRODUCTION_ENDED: "{what} were left out. {message}",
}
_ITSELF = Remedy(who="nobody: it resolves itself", action="Wait: its job is made when others have ended.")


def explanation(item: pb.WorkItem, stage: pb.Stage, production_state: int) -> explanation_pb2.Explanation:
    """Explain a work item of a stage."""
    reason = _reason(item, production_state)
    return explanation_pb2.Explanation(
        subject=item.name,
        state=pb.WorkItem.State.Name(item.state).removeprefix("STATE_"),
        reason=pb.WorkItemReason.Name(reason).removeprefix("WORK_ITEM_REASON_") if reason else "",
        summary=_summary(item, stage, reason),
        since=item.update_time,
        remedies=_remedies(item, reason, production_state),
        details=[f"Its files: {', '.join(item.files[:5])}{' …' if len(item.files) > 5 else ''}."],
    )


def _reason(item: pb.WorkItem, production_state: int) -> pb.WorkItemReason.ValueType:
    waits = (pb.WorkItem.STATE_GROUPED, pb.WorkItem.STATE_READY)
    if item.state in waits and production_state == pb.Production.STATE_PAUSED:
        return pb.WORK_ITEM_REASON_PAUSED
    return {
        pb.WorkItem.STATE_GROUPED: pb.WORK_ITEM_REASON_GROUP_GROWS,
        pb.WorkItem.STATE_READY: pb.WORK_ITEM_REASON_WAIT_TURN,
        pb.WorkItem.STATE_ASSIGNED: pb.WORK_ITEM_REASON_JOB_UNDER_WAY,
        pb.WorkItem.STATE_MAX_TRIES: pb.WORK_ITEM_REASON_MAX_TRIES,
        pb.WorkItem.STATE_MISSING: pb.WORK_ITEM_REASON_FILE_DELETED,
        pb.WorkItem.STATE_SKIPPED: pb.WORK_ITEM_REASON_PRODUCTION_ENDED,
    }.get(item.state, pb.WORK_ITEM_REASON_UNSPECIFIED)


def _summary(item: pb.WorkItem, stage: pb.Stage, reason: pb.WorkItemReason.ValueType) -> str:
    values = {
        "what": f"{len(item.files)} files{f' of group {item.group}' if item.group else ''}",
        "again": f" again, after {item.tries} tries ({item.message})" if item.tries else "",
        "job": item.job or "A job that is being submitted",
        "tries": item.tries,
        "max_tries": max_tries(stage.data),
        "stage": stage.name,
        "max_active_jobs": max_active_jobs(stage),
        "message": item.message,
    }
    return _SUMMARIES[reason].format_map(values).rstrip()


def _remedies(item: pb.WorkItem, reason: pb.WorkItemReason.ValueType, production_state: int) -> list[Remedy]:
    production, _, rest = item.name.removeprefix("productions/").partition("/stages/")
    stage = rest.partition("/")[0]
    resume = _resume(production, production_state)
    job = Remedy(who="you", action="Ask the scheduler about its job.", command=f"khomas why {item.job}")
    match reason:
        case pb.WORK_ITEM_REASON_PAUSED:
            return [resume]
        case pb.WORK_ITEM_REASON_GROUP_GROWS:
            flush = "If no more files come, close the dataset or flush the stage."
            return [Remedy(who="you", action=flush, command=f"khomas prod flush {production} {stage}")]
        case pb.WORK_ITEM_REASON_WAIT_TURN:
            return [_ITSELF]
        case pb.WORK_ITEM_REASON_JOB_UNDER_WAY:
            return [job] if item.job else [_ITSELF]
        case pb.WORK_ITEM_REASON_MAX_TRIES:
            return [job, resume]
    return []


def _resume(production: str, state: int) -> Remedy:
    if state not in (pb.Production.STATE_ACTIVE, pb.Production.STATE_PAUSED):
        return Remedy(
            who="you", action="Its production has ended; remove the cause and make another one for its files."
        )
    # What failed too often gets new tries from a resume, which does nothing where nothing is paused.
    pause = f"khomas prod pause {production} && " if state == pb.Production.STATE_ACTIVE else ""
    return Remedy(
        who="you",
        action="Remove the cause, then resume the production: what failed too often gets new tries.",
        command=f"{pause}khomas prod resume {production}",
    )
