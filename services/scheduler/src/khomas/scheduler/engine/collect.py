"""Takes logs of ended attempts home, so that the batch system may forget them."""

import asyncio
import logging
from collections.abc import Sequence

import aiofiles
import aiofiles.os
from sqlalchemy import select

from khomas.scheduler import tables
from khomas.scheduler.engine.desk import Desk, now
from khomas.scheduler.engine.transcript import Operation
from khomas.scheduler.records import Attempt
from khomas.scheduler.store.bulk import update_many

log = logging.getLogger(__name__)

_BATCH = 100
_PIECE = 1 << 20
STREAMS = ("stdout", "stderr")


class Collector:
    """Empties what ended attempts left with the backends."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def step(self) -> None:
        """Collect a batch of attempts that ended some time ago."""
        table = tables.attempt
        before = now() - self._desk.settings.collect_after
        query = select(table).where(tables.LEFT, table.c.end_time < before).order_by(table.c.end_time)
        async with self._desk.database.read() as connection:
            ended = [Attempt._make(row) for row in (await connection.execute(query.limit(_BATCH))).all()]
        collected = [attempt for attempt in ended if await self._collect(attempt)]
        if not collected:
            return
        rows = [{"uid": attempt.uid, "collected": True} for attempt in collected]
        async with self._desk.write() as connection:
            await update_many(connection, table, ("uid",), rows)
        await self._purge(collected)

    async def _collect(self, attempt: Attempt) -> bool:
        if not attempt.native_id or attempt.backend not in self._desk.sites:
            return True
        if self._desk.sites.lack(attempt.backend) is not None:
            return False
        try:
            with self._desk.transcript.of(attempt.backend, Operation.OPERATION_FETCH, [attempt.uid]):
                for stream in STREAMS:
                    await self._copy(attempt, stream)
        except Exception:
            log.exception("collect.failed", extra={"attempt": attempt.uid})
            return False
        return True

    async def _copy(self, attempt: Attempt, stream: str) -> None:
        backend = self._desk.sites[attempt.backend].backend
        piece = await backend.peek(attempt.native_id, stream, 0, _PIECE)
        if piece.size == 0:
            return
        folder = self._desk.attempt_folder(attempt.uid)
        await aiofiles.os.makedirs(folder, mode=0o700, exist_ok=True)
        hidden = folder / f".{stream}"
        async with aiofiles.open(hidden, "wb") as target:
            while piece.data:
                await target.write(piece.data)
                piece = await backend.peek(attempt.native_id, stream, piece.offset + len(piece.data), _PIECE)
        await aiofiles.os.replace(hidden, folder / stream)

    async def _purge(self, attempts: Sequence[Attempt]) -> None:
        by_site: dict[str, list[Attempt]] = {}
        for attempt in attempts:
            if attempt.native_id and attempt.backend in self._desk.sites:
                by_site.setdefault(attempt.backend, []).append(attempt)
        for site, some in by_site.items():
            ids, uids = [one.native_id for one in some], [one.uid for one in some]
            try:
                with self._desk.transcript.of(site, Operation.OPERATION_PURGE, uids):
                    async with asyncio.timeout(self._desk.settings.backend_deadline.total_seconds()):
                        await self._desk.sites[site].backend.purge(ids)
            except Exception:
                log.exception("purge.failed", extra={"backend": site, "jobs": len(ids)})
