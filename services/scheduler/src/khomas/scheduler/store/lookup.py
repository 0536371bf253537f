"""Finds jobs by name, children without a row included."""

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.kit.database import insert_many
from khomas.scheduler import tables
from khomas.scheduler.engine.candidates import children
from khomas.scheduler.errors import JobNotFound
from khomas.scheduler.intake.drafts import child_job
from khomas.scheduler.names import split
from khomas.scheduler.records import Job
from khomas.scheduler.store.blueprints import Blueprints
from khomas.scheduler.store.bulk import update_many
from khomas.scheduler.store.changes import lock_jobs, read_jobs

_PAGE = 10_000


@dataclass(frozen=True, slots=True)
class Lookup:
    """Reads jobs by uid."""

    blueprints: Blueprints

    async def read(self, connection: AsyncConnection, uids: Iterable[str]) -> dict[str, Job]:
        """Those of the jobs that exist; a child without a row is as its array says."""
        wanted = list(uids)
        arrays = {split(uid)[0] for uid in wanted}
        found = {job.uid: job for job in await read_jobs(connection, {*wanted, *arrays})}
        missing = [uid for uid in wanted if uid not in found]
        if missing:
            plans = await self.blueprints.of(connection, {job.spec for job in found.values() if job.is_array})
            for uid in missing:
                array, index = split(uid)
                if array in found and found[array].made <= index < found[array].total:
                    parent = found[array]
                    found[uid] = child_job(parent, index, plans[parent.spec].parameters(index))
        return {uid: found[uid] for uid in wanted if uid in found}

    async def lock(self, connection: AsyncConnection, uids: Iterable[str]) -> dict[str, Job]:
        """Read jobs that are to be changed; children get their rows. Raises `JobNotFound`."""
        wanted = list(uids)
        found = {job.uid: job for job in await lock_jobs(connection, wanted)}
        missing = [uid for uid in wanted if uid not in found]
        if missing:
            await self._make(connection, missing)
            found |= {job.uid: job for job in await lock_jobs(connection, missing)}
        for uid in wanted:
            if uid not in found:
                raise JobNotFound(name=f"jobs/{uid}")
        return found

    async def _make(self, connection: AsyncConnection, uids: Iterable[str]) -> None:
        """Give rows to children before their turn, and to those before them: an array has no gaps."""
        last: dict[str, int] = {}
        for uid in uids:
            parent, index = split(uid)
            last[parent] = max(index, last.get(parent, -1))
        arrays = await lock_jobs(connection, last)
        plans = await self.blueprints.of(connection, {job.spec for job in arrays if job.is_array})
        for array in arrays:
            end = min(last[array.uid] + 1, array.total)
            for start in range(array.made, end, _PAGE):
                page = children(array, plans[array.spec], start, min(end, start + _PAGE))
                await insert_many(connection, tables.job, [one.job.values() for one in page])
            if end > array.made:
                due = array.due if end < array.total else None
                await update_many(connection, tables.job, ("uid",), [{"uid": array.uid, "made": end, "due": due}])
