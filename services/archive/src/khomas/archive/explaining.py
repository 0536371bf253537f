"""Why a release is not ready or failed, and what would change it."""

from khomas.api.archive.v1 import release_pb2 as pb
from khomas.api.common.v1 import explanation_pb2
from khomas.archive.names import PREFIX
from khomas.archive.releases import Releases
from khomas.archive.rows import release_message
from khomas.kit.database import AnyRow

State = pb.Release.State


async def explain(releases: Releases, name: str) -> explanation_pb2.Explanation:
    """Answer ExplainRelease."""
    row = await releases.row(name)
    explanation = explanation_pb2.Explanation(
        subject=row.name,
        state=State.Name(row.state).removeprefix("STATE_"),
        reason=_reason(row),
        summary=_summary(row),
        remedies=_remedies(row),
        details=row.problems,
    )
    explanation.since.FromDatetime(row.state_time)
    if row.state == State.STATE_PREPARING:
        explanation.next_check_time.FromDatetime(row.next_attempt_time)
    return explanation


def _reason(row: AnyRow) -> str:
    name = pb.Release.Reason.Name(release_message(row).reason).removeprefix("REASON_")
    return "" if name == "UNSPECIFIED" else name


def _summary(row: AnyRow) -> str:
    match row.state:
        case State.STATE_PREPARING if row.message:
            return f"The last try could not go on: {row.message}."
        case State.STATE_PREPARING:
            return f"Its files of {row.dataset} are being checked and copied."
        case State.STATE_FAILED:
            return f"It has {len(row.problems)} problems; the first: {row.problems[0]}."
        case State.STATE_WITHDRAWN:
            return f"It was taken back: {row.message}"
        case State.STATE_READY:
            return f"It is complete with {row.record_count} records, but not published."
    return f"It is published with {row.record_count} records."


def _remedies(row: AnyRow) -> list[explanation_pb2.Remedy]:
    remedy = explanation_pb2.Remedy
    match row.state:
        case State.STATE_PREPARING if row.message:
            return [remedy(who="operator", action="See that the services and storages it needs answer.")]
        case State.STATE_PREPARING:
            return [remedy(who="nobody: it resolves itself", action="Wait until it is ready.")]
        case State.STATE_FAILED:
            action = "Mend the files or the mapping, then make the next version."
            return [remedy(who="you", action=action)]
        case State.STATE_READY:
            command = f"khomas release publish {row.name.removeprefix(PREFIX)}"
            return [remedy(who="you", action="Publish it.", command=command)]
    return []
