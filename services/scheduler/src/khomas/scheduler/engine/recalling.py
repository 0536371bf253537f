"""Has inputs brought from tape before jobs are handed over, and lets the jobs go on that waited for them."""

import asyncio
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

import grpc
from sqlalchemy import update

from khomas.api.common.v1.event_pb2 import WatchEventsResponse
from khomas.api.scheduler.v1.state_pb2 import Reason
from khomas.api.storage.v1.recall_pb2 import Recall
from khomas.api.storage.v1.storage_service_pb2 import Download
from khomas.kit.boundary.status import info_of
from khomas.kit.database import in_values
from khomas.scheduler import tables
from khomas.scheduler.engine.desk import Desk, now

log = logging.getLogger(__name__)

_OFFLINE: Final = "OFFLINE"
_AGAIN_SECONDS: Final = 10.0


class Recalling:
    """Knows which jobs wait for which files."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        # Jobs by LFN.
        self._waiting: dict[str, set[str]] = {}
        self._arrived: set[str] = set()

    async def waits(self, inputs: Mapping[str, Sequence[str]], downloads: Mapping[str, Download]) -> dict[str, str]:
        """Want all files on disk that are on tape, with one call; return which jobs wait for some, and how far that is.

        Raises `AioRpcError`.
        """
        offline = {name for name, download in downloads.items() if is_offline(download)}
        if not offline:
            return {}
        recalls = await self._desk.storage.recalls(sorted(offline))
        told: dict[str, str] = {}
        for job, names in inputs.items():
            missing = [recalls[name] for name in dict.fromkeys(names) if name in recalls]
            if missing:
                told[job] = sentence(len(set(names)), missing)
                for one in missing:
                    self._waiting.setdefault(one.file, set()).add(job)
        return told

    async def ahead(self, names: Collection[str]) -> None:
        """Want what later jobs need as well, so that the tape system hears of all of it at once."""
        try:
            downloads = await self._desk.storage.downloads(names, "")
            offline = sorted(name for name, download in downloads.items() if is_offline(download))
            if offline:
                await self._desk.storage.recalls(offline)
        except grpc.aio.AioRpcError as error:
            # They are asked for when it is their turn.
            log.info("recalls.not_ahead", extra={"code": error.code().name})

    async def follow(self) -> None:
        """Follow recalls for ever. What was told while nobody listened is made good by looking at all jobs again."""
        while True:
            try:
                stream = self._desk.storage.recall_events()
                await self._wake(None)
                async for answer in stream:
                    self._note(answer)
            except grpc.aio.AioRpcError as error:
                log.info("recalls.not_followed", extra={"code": error.code().name})
            await asyncio.sleep(_AGAIN_SECONDS)

    async def wake(self) -> None:
        """Let jobs be looked at again of whose inputs something was told."""
        if self._arrived:
            jobs, self._arrived = self._arrived, set()
            await self._wake(jobs)

    def _note(self, answer: WatchEventsResponse) -> None:
        recall = Recall()
        for event in answer.events:
            if event.resource.Unpack(recall):
                self._arrived |= self._waiting.pop(recall.file, set())

    async def _wake(self, jobs: Collection[str] | None) -> None:
        """Let these jobs be looked at again, or all that wait for tape."""
        job, moment = tables.job, now()
        waits = (job.c.reason == Reason.REASON_WAIT_STAGE_FROM_TAPE) & job.c.due.is_not(None) & (job.c.due > moment)
        which = waits if jobs is None else waits & in_values(job.c.uid, jobs)
        async with self._desk.write() as connection:
            woken = await connection.execute(update(job).where(which).values(due=moment))
        if woken.rowcount:
            self._desk.due.set()


def is_offline(download: Download) -> bool:
    """Whether a file is there, on tape alone."""
    return not download.grants and info_of(download.error).reason == _OFFLINE


def sentence(inputs: int, missing: Sequence[Recall]) -> str:
    """Say how far the recall of the inputs of a job is, with its figures."""
    elements = ", ".join(sorted({one.storage_element for one in missing}))
    parts = [f"{len(missing)} of {inputs} inputs are on tape at {elements}", _request(missing)]
    parts[1] += f", {inputs - len(missing)} done"
    places = [one.queue_position for one in missing if one.queue_position]
    if places:
        parts.append(f"place {min(places)} in its queue")
    parts += dict.fromkeys(one.message for one in missing if one.message)
    return "; ".join(parts[:4])


def _request(missing: Iterable[Recall]) -> str:
    requests = sorted({one.request for one in missing if one.request})
    if not requests:
        return "not asked for yet"
    return f"stage request {requests[0]}" + (f" and {len(requests) - 1} more" if requests[1:] else "")
