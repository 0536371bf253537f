"""What jobs printed and the small files they left, live and afterwards."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiofiles
import aiofiles.os

from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.kit.database import Database
from khomas.scheduler.errors import AttemptNotFound, JobNotFound, LogNotFound, SandboxMissing
from khomas.scheduler.intake.sandboxes import Sandboxes
from khomas.scheduler.names import uid_of
from khomas.scheduler.placement.sites import Sites
from khomas.scheduler.records import Attempt, Job
from khomas.scheduler.store.changes import read_attempts
from khomas.scheduler.store.lookup import Lookup

_PIECE = 256 * 1024
_FOLLOW_SECONDS = 0.2
_STREAMS = {pb.ReadLogRequest.STREAM_STDERR: "stderr"}


@dataclass(frozen=True, slots=True)
class Logs:
    """Reads from the backend while it has the files, from our folder afterwards."""

    database: Database
    lookup: Lookup
    sites: Sites
    sandboxes: Sandboxes
    folder: Path

    async def read(self, request: pb.ReadLogRequest) -> AsyncIterator[pb.ReadLogResponse]:
        """Stream a log; with follow until the job is final, over all attempts that come."""
        stream, offset, started = _STREAMS.get(request.stream, "stdout"), request.offset, False
        number = request.attempt
        while True:
            job, attempt = await self._attempt(request.name, number)
            if attempt is not None:
                ended = attempt.final
                async for piece in self._pieces(attempt, stream, offset):
                    started, offset = True, piece.offset + len(piece.data)
                    yield piece
                if ended and not request.attempt and request.follow and not job.final and job.attempt > attempt.number:
                    number, offset = attempt.number + 1, 0
                    continue
                if ended and (job.final or request.attempt):
                    break
                number = attempt.number if request.follow and not ended else number
            if not request.follow or (attempt is None and job.final):
                break
            await asyncio.sleep(_FOLLOW_SECONDS)
        if not started and attempt is None:
            raise LogNotFound(name=request.name, stream=stream)

    async def tail(self, attempt: Attempt, stream: str, size: int) -> bytes:
        """The end of a log."""
        data = b"".join([piece.data async for piece in self._pieces(attempt, stream, -size)])
        return data[-size:]

    async def sandbox(self, request: pb.ReadSandboxRequest) -> AsyncIterator[pb.ReadSandboxResponse]:
        """Stream an uploaded file, or a sandbox output."""
        path = await self._sandbox_path(request)
        async with aiofiles.open(path, "rb") as stream:
            while data := await stream.read(_PIECE):
                yield pb.ReadSandboxResponse(data=data)

    async def _sandbox_path(self, request: pb.ReadSandboxRequest) -> Path:
        if request.WhichOneof("source") == "sha256":
            async with self.database.read() as connection:
                missing = await self.sandboxes.missing(connection, [request.sha256])
            if missing:
                raise SandboxMissing(sha256=request.sha256)
            return self.sandboxes.path(request.sha256)
        wanted = request.output
        _, attempt = await self._attempt(wanted.job, wanted.attempt)
        known = {one["path"] for one in attempt.outputs if one.get("sandbox")} if attempt is not None else set()
        if attempt is None or wanted.path not in known:
            raise LogNotFound(name=wanted.job, stream=wanted.path)
        return self.folder / attempt.uid / "sandbox" / wanted.path

    async def _attempt(self, name: str, number: int) -> tuple[Job, Attempt | None]:
        """The job, and its attempt with this number, 0 for the last one."""
        uid = uid_of(name)
        async with self.database.read() as connection:
            jobs = await self.lookup.read(connection, [uid])
            if uid not in jobs:
                raise JobNotFound(name=name)
            attempts = (await read_attempts(connection, [uid])).get(uid, [])
        if number == 0:
            return jobs[uid], attempts[-1] if attempts else None
        found = next((attempt for attempt in attempts if attempt.number == number), None)
        if found is None:
            raise AttemptNotFound(name=name, attempt=number)
        return jobs[uid], found

    async def _pieces(self, attempt: Attempt, stream: str, offset: int) -> AsyncIterator[pb.ReadLogResponse]:
        """What there is from here on."""
        kept = self.folder / attempt.uid / stream
        if await aiofiles.os.path.exists(kept):
            async for piece in _from_file(kept, offset):
                yield pb.ReadLogResponse(offset=piece[0], data=piece[1], attempt=attempt.number)
        elif attempt.native_id and not attempt.collected and attempt.backend in self.sites:
            backend = self.sites[attempt.backend].backend
            while True:
                chunk = await backend.peek(attempt.native_id, stream, offset, _PIECE)
                if not chunk.data:
                    return
                yield pb.ReadLogResponse(offset=chunk.offset, data=chunk.data, attempt=attempt.number)
                offset = chunk.offset + len(chunk.data)


async def _from_file(path: Path, offset: int) -> AsyncIterator[tuple[int, bytes]]:
    async with aiofiles.open(path, "rb") as stream:
        size = (await aiofiles.os.stat(path)).st_size
        at = max(0, size + offset) if offset < 0 else offset
        await stream.seek(at)
        while data := await stream.read(_PIECE):
            yield at, data
            at += len(data)
