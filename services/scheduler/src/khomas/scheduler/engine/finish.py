"""Brings the files of ended attempts home: sandbox files to us, the others to the catalogue, all or nothing."""

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import aiofiles.os
import grpc

from khomas.api.scheduler.v1.state_pb2 import DesiredState, JobState, Reason
from khomas.kit.errors import DomainError
from khomas.scheduler.engine.desk import Desk, now
from khomas.scheduler.engine.failing import after_failures, found_in_logs
from khomas.scheduler.engine.observe import job_after
from khomas.scheduler.engine.parts import in_parts
from khomas.scheduler.engine.strays import gone
from khomas.scheduler.engine.transcript import Operation
from khomas.scheduler.intake.blueprint import Blueprint, Identity
from khomas.scheduler.lifecycle.verdicts import ended, failed
from khomas.scheduler.outputs import MetadataUnfit, catalogued, commits, kept, output_files
from khomas.scheduler.records import Attempt, Job
from khomas.scheduler.store.changes import Change, lock_jobs, read_jobs

log = logging.getLogger(__name__)

_AT_ONCE = 16
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_PASSING = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.UNAUTHENTICATED,
)
_TYPES_SECONDS = 60.0
# Looked up once: a name of a protobuf enumeration costs more than all else that a tick does with a waiting job.
_FINISHING, _SUCCEEDED = JobState.JOB_STATE_FINISHING, JobState.JOB_STATE_SUCCEEDED


@dataclass(slots=True)
class _Work:
    """An attempt that is being finished."""

    attempt: Attempt
    job: Job
    blueprint: Blueprint


@dataclass(slots=True)
class _Waits:
    """When an attempt is tried again whose files could not be brought home."""

    at: float = 0.0
    pause: float = _FIRST_PAUSE


@dataclass(slots=True)
class _Types:
    known: Mapping[str, int] = field(default_factory=dict)
    until: float = -1.0


class Finisher:
    """Ends attempts that left files."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._waits: dict[str, _Waits] = {}
        self._types = _Types()

    async def run(self) -> None:
        """Finish whenever an attempt has ended."""
        while True:
            if not await self.step():
                await self._desk.finishing.wait(self._desk.settings.poll.total_seconds())

    async def step(self) -> bool:
        """Finish a batch; tell whether there was one."""
        loop = asyncio.get_running_loop().time()
        attempts = [
            one.attempt
            for one in list(self._desk.open.values())
            if one.attempt.state == _FINISHING
            and (one.attempt.uid not in self._waits or self._waits[one.attempt.uid].at <= loop)
        ][: 4 * _AT_ONCE]
        if not attempts:
            return False
        limit = asyncio.Semaphore(_AT_ONCE)
        done = await asyncio.gather(*[self._finished(work, limit) for work in await self._works(attempts)])
        results = [attempt for attempt in done if attempt is not None]
        if results:
            found = await found_in_logs(self._desk, [one for one in results if one.state != _SUCCEEDED])
            left = await in_parts(partial(self._write, found), results, lambda one: one.uid)
            for attempt in left:
                self._later(attempt, "it could not be written down")
        return bool(results)

    async def _works(self, attempts: Sequence[Attempt]) -> list[_Work]:
        async with self._desk.database.read() as connection:
            jobs = {job.uid: job for job in await read_jobs(connection, [attempt.job for attempt in attempts])}
            plans = await self._desk.blueprints.of(connection, {job.spec for job in jobs.values()})
        return [_Work(one, jobs[one.job], plans[jobs[one.job].spec]) for one in attempts]

    async def _finished(self, work: _Work, limit: asyncio.Semaphore) -> Attempt | None:
        """The attempt after its end; None when it has to be tried again."""
        async with limit:
            try:
                return await self._bring_home(work)
            except (MetadataUnfit, DomainError) as error:
                return failed(work.attempt, Reason.REASON_DATA_REGISTER, str(error), now())
            except grpc.aio.AioRpcError as error:
                if error.code() in _PASSING:
                    self._later(work.attempt, error)
                    return None
                message = f"the storage refused its outputs: {error.details()}"
                return failed(work.attempt, Reason.REASON_DATA_REGISTER, message, now())
            except Exception as error:
                log.exception("finish.failed", extra={"attempt": work.attempt.uid})
                self._later(work.attempt, error)
                return None

    async def _bring_home(self, work: _Work) -> Attempt:
        attempt = work.attempt
        out_of_reach = kept(attempt) and attempt.backend not in self._desk.sites
        if out_of_reach and work.job.desired == DesiredState.DESIRED_STATE_CANCEL:
            return gone(attempt, now())
        await self._fetch(attempt)
        files = []
        if catalogued(attempt):
            child = work.blueprint.child(work.job.index)
            identity = Identity(work.job.parent or work.job.uid, work.job.index, attempt.number)
            values = work.blueprint.values(child, identity)
            wanted = commits(work.blueprint, attempt, values, await self._key_types())
            files = list(await self._desk.storage.commit(attempt.uid, work.job.owner, wanted))
        stored = output_files(attempt, files)
        return ended(attempt._replace(outputs=stored), now())

    async def _fetch(self, attempt: Attempt) -> None:
        """Take the sandbox files from the backend; those that are here already stay."""
        folder = self._desk.attempt_folder(attempt.uid)
        backend = self._desk.sites[attempt.backend].backend
        for made in kept(attempt):
            target = folder / "sandbox" / made["path"]
            if await aiofiles.os.path.exists(target):
                continue
            await aiofiles.os.makedirs(target.parent, mode=0o700, exist_ok=True)
            with self._desk.transcript.of(attempt.backend, Operation.OPERATION_FETCH, [attempt.uid]):
                async with asyncio.timeout(self._desk.settings.backend_deadline.total_seconds()):
                    await backend.fetch_output(attempt.native_id, made["location"], str(target))

    async def _key_types(self) -> Mapping[str, int]:
        """Declared metadata keys, looked up once a minute."""
        loop = asyncio.get_running_loop().time()
        if loop >= self._types.until:
            self._types = _Types(await self._desk.catalog.key_types(), loop + _TYPES_SECONDS)
        return self._types.known

    def _later(self, attempt: Attempt, error: object) -> None:
        """Try again after a pause that grows; the files stay where they are."""
        waits = self._waits.setdefault(attempt.uid, _Waits())
        waits.at = asyncio.get_running_loop().time() + waits.pause
        waits.pause = min(2 * waits.pause, _LONGEST_PAUSE)
        log.warning("finish.again", extra={"attempt": attempt.uid, "error": str(error)[:200]})

    async def _write(self, found: Mapping[str, Collection[str]], attempts: Sequence[Attempt]) -> None:
        moment = now()
        by_job = {attempt.job: attempt for attempt in attempts}
        bad = [one for one in attempts if one.state != _SUCCEEDED]
        good = by_job.keys() - {attempt.job for attempt in bad}
        async with self._desk.write() as connection:
            jobs = await lock_jobs(connection, good)
            changes = [Change(job, job_after(job, by_job[job.uid], moment), by_job[job.uid]) for job in jobs]
            changes += await after_failures(connection, self._desk, bad, moment, found)
            await self._desk.changes.apply(connection, changes, moment)
        for attempt in attempts:
            self._waits.pop(attempt.uid, None)
            self._desk.closed(attempt)
