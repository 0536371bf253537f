"""For how long attempts may give no sign of life."""

from collections.abc import Iterable

from khomas.scheduler.engine.desk import Desk, Open
from khomas.scheduler.store.changes import read_jobs


async def look_up_patience(desk: Desk, quiet: Iterable[Open]) -> None:
    """Note what their jobs say, of those where it is not known: nobody asks while an attempt is seen."""
    unknown = {one.attempt.job: one for one in quiet if one.patience is None}
    if not unknown:
        return
    async with desk.database.read() as connection:
        jobs = await read_jobs(connection, unknown)
        plans = await desk.blueprints.of(connection, {job.spec for job in jobs})
    for job in jobs:
        said = plans[job.spec].spec.limits.heartbeat_timeout.ToTimedelta()
        unknown[job.uid].patience = (said or desk.settings.heartbeat_timeout).total_seconds()
