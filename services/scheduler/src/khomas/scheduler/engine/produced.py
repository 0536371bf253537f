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
from khomas.scheduler import tables
from khomas.scheduler.blueprint import WantedFile, matches, place
from khomas.scheduler.engine.desk import Desk
from khomas.scheduler.mergers import LISTING
from khomas.scheduler.records import Job

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
            missing = await _missing(connection, job.merges)
            found[EXTRA] = [WantedFile(LISTING, content=_listing(made, files, missing))]
    return found


async def _made(connection: AsyncConnection, desk: Desk, source: Input) -> list[_Made]:
    """Outputs of the succeeded attempts of a job, or of all children of an array in their order."""
    job, attempt = tables.job.c, tables.attempt.c
    target = source.job_outputs.removeprefix("jobs/")
    query = (
        select(job.uid, job.index.label("number"), attempt.uid.label("attempt"), attempt.outputs)
        .join(tables.attempt, attempt.job == job.uid)
        .where(or_(job.uid == target, job.parent == target), attempt.state == JobState.JOB_STATE_SUCCEEDED)
        .order_by(job.index, attempt.number)
    )
    made = []
    for row in (await connection.execute(query)).all():
        folder = desk.attempt_folder(row.attempt)
        made += [_one(row.uid, row.number, output, folder) for output in row.outputs]
    return [one for one in made if matches(one.name, source.match)]


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


async def _missing(connection: AsyncConnection, array: str) -> list[str]:
    """Children that did not succeed."""
    job = tables.job.c
    query = select(job.index).where(job.parent == array, job.state != JobState.JOB_STATE_SUCCEEDED).order_by(job.index)
    return [f"jobs/{array}/{index}" for index in (await connection.execute(query)).scalars()]


def _listing(made: Sequence[_Made], files: Sequence[WantedFile], missing: Sequence[str]) -> bytes:
    inputs = [{"path": file.path, "job": one.job, "name": one.name} for one, file in zip(made, files, strict=True)]
    return json.dumps({"inputs": inputs, "missing": missing}, indent=1).encode()
