"""Says why a production does not go on."""

from collections.abc import Mapping, Sequence

from sqlalchemy import func, select

from khomas.api.bookkeeping.v1.production_pb2 import Production, Stage, WorkItem
from khomas.api.common.v1.explanation_pb2 import Explanation, Remedy
from khomas.bookkeeping.productions import found
from khomas.bookkeeping.progress import complete_by_name, shown
from khomas.bookkeeping.stages import max_active_jobs, takes_outputs, upstream_complete
from khomas.bookkeeping.tables import failure, stage, work_item
from khomas.kit.database import AnyRow, Database

_OPERATOR_REASONS = ("INFRA_", "DATA_")


class Explaining:
    """Answers ExplainProduction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def explain(self, name: str) -> Explanation:
        """Look where it stands, what each stage waits for and what failed most."""
        async with self._database.read() as connection:
            row = await found(connection, name)
            now = (await shown(connection, [row]))[0]
            in_order = select(stage).where(stage.c.production_id == row.id).order_by(stage.c.position)
            stages = (await connection.execute(in_order)).all()
            ids = [one.id for one in stages]
            growing = (
                select(work_item.c.stage_id, func.count().label("number"))
                .where(work_item.c.stage_id.in_(ids), work_item.c.state == WorkItem.STATE_GROUPED)
                .group_by(work_item.c.stage_id)
            )
            groups = {one.stage_id: one.number for one in await connection.execute(growing)}
            worst = select(failure).where(failure.c.stage_id.in_(ids)).order_by(failure.c.job_count.desc()).limit(1)
            failed = (await connection.execute(worst)).one_or_none()
        answer = _standing(row, now)
        if row.state == Production.STATE_ACTIVE:
            _add_waits(answer, row.name, stages, groups, now.stages)
        if failed is not None:
            _add_failure(answer, failed)
        answer.details.extend(_figures(one) for one in now.stages)
        return answer


def _standing(row: AnyRow, now: Production) -> Explanation:
    state = Production.State.Name(row.state).removeprefix("STATE_")
    progress = now.progress
    jobs = f"{progress.jobs_succeeded} jobs succeeded, {progress.jobs_failed} failed, {progress.jobs_active} are active"
    events = f"; {progress.produced_events} of {progress.requested_events} events" if progress.requested_events else ""
    answer = Explanation(subject=row.name, state=state, since=row.update_time)
    answer.summary = f"{row.message} {jobs}{events}.".strip()
    if row.state == Production.STATE_PAUSED:
        answer.reason = "PAUSED"
        command = f"khomas prod resume {row.name.removeprefix('productions/')}"
        answer.remedies.append(Remedy(who="you", action="Remove the cause, then resume it.", command=command))
    return answer


def _add_waits(
    answer: Explanation,
    name: str,
    stages: Sequence[AnyRow],
    groups: Mapping[int, int],
    seen: Sequence[Stage],
) -> None:
    """Say what each stage waits for, the first one as the reason."""
    complete = complete_by_name(stages)
    for row, now in zip(stages, seen, strict=True):
        if row.complete:
            continue
        wanted = Stage.FromString(row.wanted)
        reason, said = _wait(row, wanted, complete, groups.get(row.id, 0), now)
        answer.reason = answer.reason or reason
        answer.details.append(f"{row.name}: {said}.")
        if reason == "WAIT_INPUT_DATA":
            command = f"khomas prod flush {name.removeprefix('productions/')} {row.name}"
            action = f"If no more files come for {row.name}, close the dataset or flush the stage."
            answer.remedies.append(Remedy(who="you", action=action, command=command))


def _wait(row: AnyRow, wanted: Stage, complete: Mapping[str, bool], groups: int, now: Stage) -> tuple[str, str]:
    active = now.progress.jobs_active
    if not upstream_complete(wanted, complete) and (wanted.HasField("grid") or takes_outputs(wanted)):
        before = ", ".join(name for name in wanted.after if not complete[name])
        return "WAIT_DEPENDENCY", f"waits for the stages {before}, {active} jobs are active"
    if active >= max_active_jobs(wanted):
        return "WAIT_THROTTLED", f"{active} jobs are active, as many as max_active_jobs allows"
    if active:
        return "WAIT_RESOURCES", f"{active} jobs are active; the scheduler says what they wait for"
    if wanted.HasField("data"):
        return "WAIT_INPUT_DATA", f"waits for files, {groups} groups are still growing"
    return "WAIT_RESOURCES", "its next jobs are being made"


def _add_failure(answer: Explanation, failed: AnyRow) -> None:
    said = f": {failed.message}" if failed.message else ""
    answer.details.append(
        f"Most failed with {failed.reason} ({failed.job_count} jobs), the last one {failed.job}{said}."
    )
    operator = failed.reason.startswith(_OPERATOR_REASONS)
    answer.remedies.append(
        Remedy(
            who="operator" if operator else "you",
            action=f"Look at one of the jobs that failed with {failed.reason}.",
            command=f"khomas why {failed.job.removeprefix('jobs/')}",
        )
    )


def _figures(one: Stage) -> str:
    progress = one.progress
    figures = [f"{progress.jobs_succeeded} of {progress.jobs_total} jobs succeeded", f"{progress.jobs_failed} failed"]
    if one.HasField("grid"):
        figures.append(f"{progress.produced_events} of {progress.requested_events} events produced")
        figures.append(f"{progress.jobs_to_go} more jobs are needed")
    else:
        figures.append(f"{progress.items_processed} of {progress.items_total} work items processed")
    return f"{one.name}: {', '.join(figures)}."
