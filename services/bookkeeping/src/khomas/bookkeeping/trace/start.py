"""Finds what an id means."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.bookkeeping.trace import nodes, stored
from khomas.bookkeeping.trace.graph import Graph
from khomas.bookkeeping.trace.outside import Outside
from khomas.kit.database import AnyRow, Database
from khomas.kit.ids import is_uid

# Of a production so many files are followed.
_FILES_OF_PRODUCTION = 1000
_JOB = re.compile(r"(?:jobs/)?([0-9a-f-]{36}(?:/[0-9]+)?)")


@dataclass(slots=True)
class Start:
    """Where a walk begins."""

    subject: str
    files: Sequence[str] = ()
    activities: Sequence[AnyRow] = field(default_factory=list)


async def find(database: Database, outside: Outside, graph: Graph, name: str) -> Start | None:
    """Return what an id or name means, added to the graph; None if nothing has it."""
    async with database.read() as connection:
        known = await _known(connection, graph, name)
    if known is not None:
        return known
    for look in (_catalogued, partial(_job, database), _dataset, _transfer, _rule):
        if (start := await look(outside, graph, name)) is not None:
            return start
    return None


async def _known(connection: AsyncConnection, graph: Graph, name: str) -> Start | None:
    """Look into the own tables."""
    for look in (_file, _production, _run, _release, _item, _cell, _activity):
        if (start := await look(connection, graph, name)) is not None:
            return start
    return None


async def _file(connection: AsyncConnection, graph: Graph, name: str) -> Start | None:
    made = name.startswith("/") and await stored.activities_of(connection, generated_files=[name])
    return Start(name, [name]) if made else None


async def _production(connection: AsyncConnection, graph: Graph, name: str) -> Start | None:
    row = await stored.production_named(connection, name)
    if row is None:
        return None
    summary = nodes.production_summary(row.state, row.description)
    graph.node(row.name, "production", uid=row.uid, summary=summary, time=row.create_time)
    files = await stored.files_of_production(connection, row.id, _FILES_OF_PRODUCTION + 1)
    if len(files) > _FILES_OF_PRODUCTION:
        graph.cut_short(row.name)
    return Start(row.name, files[:_FILES_OF_PRODUCTION])


async def _run(connection: AsyncConnection, graph: Graph, name: str) -> Start | None:
    row = await stored.run_named(connection, name)
    if row is None:
        return None
    nodes.add_run(graph, row)
    return Start(row.name, await stored.files_of_run(connection, row.id))


async def _release(connection: AsyncConnection, graph: Graph, name: str) -> Start | None:
    if "/" not in name[1:]:
        return None
    full = f"releases/{name.removeprefix('releases/')}"
    rows = await stored.releases_named(connection, full)
    return Start(full, activities=rows) if rows else None


async def _item(connection: AsyncConnection, graph: Graph, name: str) -> Start | None:
    rows = await stored.items_of(connection, [name.rpartition("/")[2]])
    if not rows:
        return None
    return Start(nodes.add_item(graph, rows[0]), activities=await stored.activities_named(connection, rows[0].uid))


async def _cell(connection: AsyncConnection, graph: Graph, name: str) -> Start | None:
    rows = await stored.cells_of(connection, [name])
    if not rows:
        return None
    return Start(nodes.add_cell(graph, rows[0]), activities=await stored.activities_named(connection, name))


async def _activity(connection: AsyncConnection, graph: Graph, name: str) -> Start | None:
    rows = await stored.activities_named(connection, name)
    if not rows:
        return None
    by_job = [row.job for row in rows if row.job in (name, f"jobs/{name}")]
    return Start(by_job[0] if by_job else nodes.activity_name(rows[0]), activities=rows)


async def _job(database: Database, outside: Outside, graph: Graph, name: str) -> Start | None:
    """Ask the scheduler, which also knows the jobs that made nothing."""
    if not (found := _JOB.fullmatch(name)):
        return None
    for job in await outside.jobs([f"jobs/{found[1]}"]):
        nodes.add_job(graph, job)
        async with database.read() as connection:
            for row in await stored.items_of(connection, [job.origin]):
                graph.edge(job.name, nodes.add_item(graph, row), "made for")
            for row in await stored.cells_of(connection, [job.origin]):
                graph.edge(job.name, nodes.add_cell(graph, row), "made for")
            children = await stored.activities_of_array(connection, job.name)
        return Start(job.name, activities=children)
    return None


async def _catalogued(outside: Outside, graph: Graph, name: str) -> Start | None:
    if not name.startswith("/") and not is_uid(name.removeprefix("files/")):
        return None
    lfn = name if name.startswith("/") else f"files/{name.removeprefix('files/')}"
    for file in await outside.files([lfn]):
        nodes.add_file(graph, file)
        return Start(file.name, [file.name])
    return None


async def _dataset(outside: Outside, graph: Graph, name: str) -> Start | None:
    # A release that is not recorded yet is not the dataset of its files, which is called alike.
    if name.startswith(("/", "releases/")) or (dataset := await outside.dataset(name)) is None:
        return None
    files, more = await outside.files_of_dataset(dataset.name)
    return _holding(graph, nodes.add_dataset(graph, dataset), files, "part of", more=more)


async def _transfer(outside: Outside, graph: Graph, name: str) -> Start | None:
    transfer = await outside.transfer(name)
    return Start(nodes.add_transfer(graph, transfer), [transfer.file]) if transfer is not None else None


async def _rule(outside: Outside, graph: Graph, name: str) -> Start | None:
    uid = name.removeprefix(nodes.RULE)
    for rule in await outside.rules([uid]) if is_uid(uid) else ():
        files, more = await outside.files_of_rule(rule.name)
        return _holding(graph, nodes.add_rule(graph, rule), files, "wanted by", more=more)
    return None


def _holding(graph: Graph, name: str, files: Sequence[str], relation: str, *, more: bool) -> Start:
    for file in files:
        graph.edge(file, name, relation)
    if more:
        graph.cut_short(name)
    return Start(name, files)
