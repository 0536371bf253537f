"""What the own tables say about where things came from, each question one statement."""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import and_, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.bookkeeping.tables import (
    activity,
    cell,
    generated,
    production,
    run,
    run_file,
    stage,
    submission,
    used,
    work_item,
)
from khomas.kit.database import AnyRow, in_values

_CHILDREN = 1000


async def activities_of(
    connection: AsyncConnection, *, generated_files: Collection[str] = (), uids: Collection[str] = ()
) -> Sequence[AnyRow]:
    """Return the activities that generated files, or that have these uids."""
    made = select(generated.c.activity_id).where(in_values(generated.c.file, generated_files))
    query = select(activity).where(or_(activity.c.id.in_(made), in_values(activity.c.uid, uids)))
    return (await connection.execute(query.order_by(activity.c.id))).all()


async def activities_using(connection: AsyncConnection, files: Collection[str]) -> Sequence[AnyRow]:
    """Return the activities that used files."""
    using = select(used.c.activity_id).where(in_values(used.c.file, files))
    query = select(activity).where(activity.c.id.in_(using))
    return (await connection.execute(query.order_by(activity.c.id))).all()


async def activities_named(connection: AsyncConnection, name: str) -> Sequence[AnyRow]:
    """Return the activities that a uid, a job, a native id or a release means."""
    uid = name.rpartition("/")[2]
    query = select(activity).where(
        or_(
            activity.c.uid == uid,
            activity.c.job == name,
            activity.c.job == f"jobs/{name}",
            activity.c.native_id == name,
            activity.c.origin == name,
        )
    )
    return (await connection.execute(query.order_by(activity.c.id))).all()


async def releases_named(connection: AsyncConnection, name: str) -> Sequence[AnyRow]:
    """Return the activities that made a release."""
    column = activity.c.attributes["release"].as_string()
    query = select(activity).where(activity.c.kind == "release", column == name)
    return (await connection.execute(query)).all()


def _with_production(*columns: Any) -> Any:
    return (
        select(
            *columns,
            stage.c.name.label("stage"),
            production.c.name.label("production"),
            production.c.uid.label("production_uid"),
            production.c.description.label("production_description"),
            production.c.create_time.label("production_time"),
            production.c.state.label("production_state"),
        )
        .select_from(stage)
        .join(production, production.c.id == stage.c.production_id)
    )


async def items_of(connection: AsyncConnection, uids: Collection[str]) -> Sequence[AnyRow]:
    """Return work items with their productions."""
    query = _with_production(*work_item.c).join(work_item, work_item.c.stage_id == stage.c.id)
    return (await connection.execute(query.where(in_values(work_item.c.uid, uids)))).all()


async def cells_of(connection: AsyncConnection, uids: Collection[str]) -> Sequence[AnyRow]:
    """Return the cells of submissions with their productions."""
    query = _with_production(submission.c.uid, cell.c.position, cell.c.parameters, cell.c.requested_events)
    query = query.join(submission, submission.c.stage_id == stage.c.id).join(cell, cell.c.id == submission.c.cell_id)
    return (await connection.execute(query.where(in_values(submission.c.uid, uids)))).all()


async def activities_of_array(connection: AsyncConnection, name: str) -> Sequence[AnyRow]:
    """Return the attempts of the children of an array, at most so many."""
    below = and_(activity.c.job > f"{name}/", activity.c.job < f"{name}0")
    query = select(activity).where(below).order_by(activity.c.job).limit(_CHILDREN)
    return (await connection.execute(query)).all()


async def production_named(connection: AsyncConnection, name: str) -> AnyRow | None:
    """Return a production by its name, with or without the collection, or its uid."""
    named = production.c.name.in_((name, f"productions/{name}"))
    query = select(production).where(or_(named, production.c.uid == name))
    return (await connection.execute(query)).first()


async def files_of_production(connection: AsyncConnection, production_id: int, limit: int) -> list[str]:
    """Return files that the jobs of a production generated, the newest first."""
    items = (
        select(work_item.c.uid)
        .join(stage, stage.c.id == work_item.c.stage_id)
        .where(stage.c.production_id == production_id)
    )
    cells = (
        select(submission.c.uid)
        .join(stage, stage.c.id == submission.c.stage_id)
        .where(stage.c.production_id == production_id)
    )
    query = (
        select(generated.c.file)
        .join(activity, activity.c.id == generated.c.activity_id)
        .where(or_(activity.c.origin.in_(items), activity.c.origin.in_(cells)))
        .order_by(activity.c.id.desc())
        .limit(limit)
    )
    return list((await connection.execute(query)).scalars())


async def runs_of(connection: AsyncConnection, files: Collection[str]) -> Sequence[AnyRow]:
    """Return the runs that files belong to, a row a pair."""
    query = select(*run.c, run_file.c.file).join(run_file, run_file.c.run_id == run.c.id)
    return (await connection.execute(query.where(in_values(run_file.c.file, files)))).all()


async def run_named(connection: AsyncConnection, name: str) -> AnyRow | None:
    """Return a run by its name, number or uid."""
    query = select(run).where(or_(run.c.name == name, run.c.name == f"runs/{name}", run.c.uid == name))
    return (await connection.execute(query)).first()


async def files_of_run(connection: AsyncConnection, run_id: int) -> list[str]:
    """Return the files of a run."""
    query = select(run_file.c.file).where(run_file.c.run_id == run_id).order_by(run_file.c.file)
    return list((await connection.execute(query)).scalars())
