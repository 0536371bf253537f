"""Counts why jobs failed, by stage and reason."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.scheduler.v1.job_pb2 import Job
from khomas.api.scheduler.v1.state_pb2 import JobState, Reason
from khomas.bookkeeping.tables import failure
from khomas.kit.database import insert_many, rows_table


async def count_failures(connection: AsyncConnection, jobs: Mapping[int, Sequence[Job]]) -> None:
    """Add jobs that ended, by stage, with two statements."""
    sums: dict[tuple[int, str], list[Job]] = {}
    for stage_id, ended in jobs.items():
        for job in ended:
            if job.status.state == JobState.JOB_STATE_FAILED:
                reason = Reason.Name(job.status.reason).removeprefix("REASON_")
                sums.setdefault((stage_id, reason), []).append(job)
    if not sums:
        return
    now = datetime.now(UTC)
    keys = ("stage_id", "reason", "job_count", "job", "message", "update_time")
    new = [dict(zip(keys, (*key, 0, "", "", now), strict=True)) for key in sums]
    await insert_many(connection, failure, new, skip_existing=True)
    types = {key: failure.c[key].type for key in keys}
    rows = [(*key, len(some), some[-1].name, some[-1].status.message, now) for key, some in sums.items()]
    added = rows_table(connection, types, rows)
    await connection.execute(
        update(failure)
        .values(
            job_count=failure.c.job_count + added.c.job_count,
            job=added.c.job,
            message=added.c.message,
            update_time=added.c.update_time,
        )
        .where(failure.c.stage_id == added.c.stage_id, failure.c.reason == added.c.reason)
    )
