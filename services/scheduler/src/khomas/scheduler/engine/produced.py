"""What other jobs made, for jobs that read it."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.scheduler.v1.job_spec_pb2 import Input, JobSpec
from khomas.api.scheduler.v1.state_pb2 import JobState
from khomas.kit.database import in_values
from khomas.scheduler import tables
from khomas.scheduler.engine.desk import Desk
from khomas.scheduler.intake.blueprint import Blueprint, WantedFile, matches, place
from khomas.scheduler.intake.mergers import LISTING
from khomas.scheduler.records import Job
from khomas.scheduler.store.changes import read_jobs
from khomas.scheduler.store.workflow import lineage

# Position of files that no input of the spec asks for.
EXTRA = -1


@dataclass(frozen=True, slots=True)
class _Made:
    job: str
    index: int
    name: str
    local: Path | None


async def produced_files(
    connection: AsyncConnection, desk: Desk, spec: JobSpec, job: Job
) -> Mapping[int, Sequence[WantedFile]]:
    """Files of the `job_outputs` inputs by position; for a merger also a listing of them and of what is missing."""
    found: dict[int, Sequence[WantedFile]] = {}
    for position, source in enumerate(spec.inputs):
        if source.WhichOneof("source") != "job_outputs":
            continue
        made = await _made(connection, desk, source)
        files = _named(source, made)
        found[position] = files
        if job.merges and source.job_outputs == f"jobs/{job.merges}":
            missing = await _missing(connection, desk, job.merges)
            found[EXTRA] = [WantedFile(LISTING, content=_listing(made, files, missing))]
    return found


async def _made(connection: AsyncConnection, desk: Desk, source: Input) -> list[_Made]:
    """Outputs of the succeeded attempts of a job, or of all children of an array in their order.

    Where others took the place of some in a resumed workflow, it is their outputs.
    """
    job, attempt = tables.job.c, tables.attempt.c
    targets = await lineage(connection, source.job_outputs.removeprefix("jobs/"))
    query = (
        select(job.uid, job.parent, job.index.label("number"), attempt.uid.label("attempt"), attempt.outputs)
        .join(tables.attempt, attempt.job == job.uid)
        .where(or_(in_values(job.uid, targets), in_values(job.parent, targets)))
        .where(attempt.state == JobState.JOB_STATE_SUCCEEDED)
        .order_by(job.uid, attempt.number)
    )
    rows = (await connection.execute(query)).all()
    originals = await _originals(connection, desk, targets)
    last = {}
    for row in rows:
        number = originals[row.parent].original_index(row.number) if row.parent in originals else row.number
        last[number] = row
    made = []
    for number, row in sorted(last.items()):
        folder = desk.attempt_folder(row.attempt)
        made += [_one(row.uid, number, output, folder) for output in row.outputs]
    return [one for one in made if matches(one.name, source.match)]


async def _originals(connection: AsyncConnection, desk: Desk, arrays: Sequence[str]) -> dict[str, Blueprint]:
    """What tells the first index of the children of arrays that took the place of others."""
    if len(arrays) == 1:
        return {}
    jobs = await read_jobs(connection, arrays)
    plans = await desk.blueprints.of(connection, {job.spec for job in jobs})
    return {job.uid: plans[job.spec] for job in jobs if job.is_array}


def _one(uid: str, index: int, output: Mapping[str, Any], folder: Path) -> _Made:
    kept = folder / "sandbox" / output["path"] if output.get("sandbox") else None
    return _Made(f"jobs/{uid}", index, output.get("name") or output["path"], kept)


def _named(source: Input, made: Sequence[_Made]) -> list[WantedFile]:
    """Files of equal names get the index of their child in front."""
    times = Counter(one.name.rpartition("/")[2] for one in made)
    unique = max(times.values(), default=1) == 1
    files = []
    for one in made:
        file = one.name.rpartition("/")[2]
        path = place(source.path, file if unique else f"{one.index:07d}_{file}", many=True)
        lfn = "" if one.local else one.name
        files.append(WantedFile(path, lfn=lfn, local=one.local, executable=source.executable))
    return files


async def _missing(connection: AsyncConnection, desk: Desk, array: str) -> list[str]:
    """Children that did not succeed, nor did what took their place."""
    job = tables.job.c
    arrays = await lineage(connection, array)
    originals = await _originals(connection, desk, arrays)
    query = select(job.parent, job.index.label("number"), job.state).where(in_values(job.parent, arrays))
    succeeded, children = set(), {}
    for row in (await connection.execute(query.order_by(job.index))).all():
        number = originals[row.parent].original_index(row.number) if originals else row.number
        if row.state == JobState.JOB_STATE_SUCCEEDED:
            succeeded.add(number)
        if row.parent == array:
            children[number] = f"jobs/{array}/{row.number}"
    return [name for number, name in children.items() if number not in succeeded]


def _listing(made: Sequence[_Made], files: Sequence[WantedFile], missing: Sequence[str]) -> bytes:
    inputs = [{"path": file.path, "job": one.job, "name": one.name} for one, file in zip(made, files, strict=True)]
    return json.dumps({"inputs": inputs, "missing": missing}, indent=1).encode()
