"""Forgets what ended long ago: jobs with their logs and sandbox files, and uploaded contents that nobody reads."""

import asyncio
import logging
import shutil
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from sqlalchemy import delete, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.kit.database import in_values
from khomas.scheduler import tables
from khomas.scheduler.engine.desk import Desk, now
from khomas.scheduler.names import split

log = logging.getLogger(__name__)

_BATCH = 1000
_job, _attempt, _dependency = tables.job.c, tables.attempt.c, tables.dependency.c
# Of jobs without children. What belongs to them, by the column that names them.
_BELONGINGS = (
    (tables.attempt, _attempt.job),
    (tables.count, tables.count.c.parent),
    (tables.dependency, _dependency.job),
    (tables.dependency, _dependency.target),
    (tables.rescue, tables.rescue.c.job),
    (tables.rescue, tables.rescue.c.original),
    (tables.slow, tables.slow.c.job),
    (tables.sandbox_use, tables.sandbox_use.c.spec),
    (tables.spec, tables.spec.c.uid),
    (tables.job, _job.uid),
)


class Retention:
    """Deletes in small transactions, so that nobody waits for it."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def step(self) -> None:
        """Forget all jobs and contents whose time is over."""
        moment = now()
        if (retain := self._desk.settings.retain) is not None:
            await self._ended(None, moment - retain)
        # What jobs say themselves: each time that is said, from the shortest on.
        after = -1
        while (retain_s := await self._next_said(after)) is not None and retain_s < moment.timestamp():
            await self._ended(retain_s, moment - timedelta(seconds=retain_s))
            after = retain_s
        while await self._contents():
            pass
        await self._desk.transcript.prune(moment - self._desk.settings.retain_commands)

    async def _next_said(self, after: int) -> int | None:
        query = select(func.min(_job.retain_s)).where(tables.TOP, _job.retain_s > after)
        async with self._desk.database.read() as connection:
            found: int | None = (await connection.execute(query)).scalar()
        return found

    async def _ended(self, retain_s: int | None, until: datetime) -> None:
        """Forget jobs and arrays that are kept for so long and ended by then."""
        query = select(_job.end_time, _job.uid).where(tables.TOP, _job.retain_s == retain_s, _job.end_time <= until)
        query = query.order_by(_job.end_time, _job.uid).limit(_BATCH)
        page = query
        while True:
            async with self._desk.database.read() as connection:
                rows = (await connection.execute(page)).all()
                needed = await _needed(connection, [row.uid for row in rows])
            await self._forget_whole([row.uid for row in rows if row.uid not in needed])
            if len(rows) < _BATCH:
                return
            # Past those that are needed: they must not hide the others.
            last = rows[-1]
            page = query.where(_job.end_time >= last.end_time, or_(_job.end_time > last.end_time, _job.uid > last.uid))

    async def _forget_whole(self, uids: Collection[str]) -> None:
        for uid in uids:
            while await self._children(uid):
                pass
        await self._forget(uids)
        if uids:
            log.info("jobs.forgotten", extra={"jobs": len(uids)})

    async def _children(self, array: str) -> bool:
        """Forget some children of an array; tell whether there may be more."""
        query = select(_job.uid).where(_job.parent == array).limit(_BATCH)
        async with self._desk.database.read() as connection:
            children = list((await connection.execute(query)).scalars())
        await self._forget(children)
        return len(children) == _BATCH

    async def _forget(self, uids: Collection[str]) -> None:
        if not uids:
            return
        async with self._desk.database.read() as connection:
            query = select(_attempt.uid).where(in_values(_attempt.job, uids))
            attempts = list((await connection.execute(query)).scalars())
        # The files first: after a crash in between the rows still say what to delete.
        await asyncio.to_thread(self._delete_folders, attempts)
        async with self._desk.write() as connection:
            for table, column in _BELONGINGS:
                await connection.execute(delete(table).where(in_values(column, uids)))

    def _delete_folders(self, attempts: Sequence[str]) -> None:
        for uid in attempts:
            shutil.rmtree(self._desk.attempt_folder(uid), ignore_errors=True)

    async def _contents(self) -> bool:
        """Delete uploaded contents that no job reads, some time after they came; tell whether there may be more."""
        if (retain := self._desk.settings.retain_sandboxes) is None:
            return False
        content, use = tables.sandbox.c, tables.sandbox_use.c
        unused = ~select(use.sha256).where(use.sha256 == content.sha256).exists()
        query = select(content.sha256).where(content.create_time <= now() - retain, unused).limit(_BATCH)
        async with self._desk.write() as connection:
            found = list((await connection.execute(query)).scalars())
            if found:
                await connection.execute(delete(tables.sandbox).where(in_values(content.sha256, found)))
        for sha256 in found:
            await asyncio.to_thread(self._desk.sandboxes.path(sha256).unlink, missing_ok=True)
        return len(found) == _BATCH


async def _needed(connection: AsyncConnection, uids: Sequence[str]) -> set[str]:
    """Those that others still wait for or read, and those whose logs are not here yet."""
    if not uids:
        return set()
    top = func.coalesce(func.nullif(_job.parent, ""), _job.uid)
    left = select(top).join(tables.attempt, _attempt.job == _job.uid)
    left = left.where(or_(in_values(_job.uid, uids), in_values(_job.parent, uids)), ~_attempt.collected)
    needed = set((await connection.execute(left)).scalars())
    waiters = select(_dependency.target).join(tables.job, _job.uid == _dependency.job).where(_job.end_time.is_(None))
    targets = {split(target)[0] for target in (await connection.execute(waiters)).scalars()}
    return needed | (targets & set(uids))
