"""Has inputs brought from tape before jobs are handed over, and lets the jobs go on that waited for them."""

import asyncio
import logging
import time
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
# How long a job that is to be looked at again may take until it is written down as waiting, and a call its answer.
_MEANWHILE_SECONDS: Final = 5.0
_REMEMBERED_SECONDS: Final = 60.0


class Recalling:
    """Knows which jobs wait for which files."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        # Jobs by LFN.
        self._waiting: dict[str, set[str]] = {}
        # When something was told of files, by LFN, and until when jobs are let go on, by uid.
        self._told: dict[str, float] = {}
        self._arrived: dict[str, float] = {}

    async def waits(self, inputs: Mapping[str, Sequence[str]], downloads: Mapping[str, Download]) -> dict[str, str]:
        """Want all files on disk that are on tape, with one call; return which jobs wait for some, and how far that is.

        Raises `AioRpcError`.
        """
        offline = {name for name, download in downloads.items() if is_offline(download)}
        if not offline:
            return {}
        begin = time.monotonic()
        recalls = await self._desk.storage.recalls(sorted(offline))
        told: dict[str, str] = {}
        for job, names in inputs.items():
            missing = [recalls[name] for name in dict.fromkeys(names) if name in recalls]
            if missing:
                told[job] = sentence(len(set(names)), missing)
                for one in missing:
                    self._waiting.setdefault(one.file, set()).add(job)
                # The answer may be older than what was told while it was on its way.
                if any(self._told.get(one.file, 0.0) >= begin for one in missing):
                    self._arrived[job] = time.monotonic() + _MEANWHILE_SECONDS
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
        moment = time.monotonic()
        jobs = {uid: end for uid, end in self._arrived.items() if end > moment}
        woken = await self._wake(jobs) if jobs else set()
        # A job that does not wait yet may be about to: that it shall is written down after its files were asked for.
        self._arrived = {uid: end for uid, end in self._arrived.items() if end > moment and uid not in woken}

    def _note(self, answer: WatchEventsResponse) -> None:
        recall, moment = Recall(), time.monotonic()
        for event in answer.events:
            if event.resource.Unpack(recall):
                self._told.pop(recall.file, None)  # the oldest come first
                self._told[recall.file] = moment
                for job in self._waiting.pop(recall.file, ()):
                    self._arrived[job] = moment + _MEANWHILE_SECONDS
        if next(iter(self._told.values()), moment) < moment - 2 * _REMEMBERED_SECONDS:
            self._told = {lfn: at for lfn, at in self._told.items() if at > moment - _REMEMBERED_SECONDS}

    async def _wake(self, jobs: Collection[str] | None) -> set[str]:
        """Let these jobs be looked at again, or all that wait for tape; return those that waited."""
        job, moment = tables.job, now()
        waits = (job.c.reason == Reason.REASON_WAIT_STAGE_FROM_TAPE) & job.c.due.is_not(None) & (job.c.due > moment)
        which = waits if jobs is None else waits & in_values(job.c.uid, jobs)
        async with self._desk.write() as connection:
            statement = update(job).where(which).values(due=moment).returning(job.c.uid)
            woken = set((await connection.scalars(statement)).all())
        if woken:
            self._desk.due.set()
        return woken


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
