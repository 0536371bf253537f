"""Looks at what backends have, and writes down what changed."""

import asyncio
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

from khomas.api.scheduler.v1.state_pb2 import DesiredState, JobState, Reason
from khomas.scheduler.backends import received
from khomas.scheduler.backends.interface import Observation, PollResult, Seen
from khomas.scheduler.backends.interface import State as Native
from khomas.scheduler.engine.desk import Desk, Open, now
from khomas.scheduler.engine.failing import after_failures, found_in_logs, why
from khomas.scheduler.engine.lost import with_accounts
from khomas.scheduler.engine.parts import in_parts
from khomas.scheduler.engine.patience import look_up_patience
from khomas.scheduler.engine.transcript import Operation
from khomas.scheduler.lifecycle.verdicts import judged
from khomas.scheduler.placement.sites import Site
from khomas.scheduler.records import Attempt, Job, State
from khomas.scheduler.storable import storable
from khomas.scheduler.store.changes import Change, lock_jobs, moved

log = logging.getLogger(__name__)

# Looked up once: a name of a protobuf enumeration costs more than all else that a tick does with a waiting job.
_FINISHING = JobState.JOB_STATE_FINISHING
# Between two looks while nothing changes the pause grows so far.
_LONGEST_PAUSE = 10
# What so many running jobs have used is asked for at one look: that can cost a file or a call each.
_MEASURED = 1000
# Changes at one look that make it worth while to wait for more.
_MANY = 8
_NATIVE: Mapping[Native, State] = {
    Native.QUEUED: JobState.JOB_STATE_QUEUED,
    Native.RUNNING: JobState.JOB_STATE_RUNNING,
    Native.SUSPENDED: JobState.JOB_STATE_SUSPENDED,
}


class Observer:
    """Watches one backend."""

    def __init__(self, desk: Desk, site: Site) -> None:
        self._desk = desk
        self._site = site
        self._cursor = ""
        self._full_at = 0.0

    def begin_again(self) -> None:
        """Look at everything next time: what changed meanwhile is not known."""
        self._full_at = 0.0

    async def run(self) -> None:
        """Look as often as the backend likes, less often while nothing changes."""
        shortest = self._site.backend.capabilities.min_poll_interval.total_seconds()
        pause = shortest
        while True:
            if not self._watched():
                await self._site.got_jobs.wait(self._desk.settings.poll.total_seconds())
                pause = shortest
            changed = await self.step()
            pause = _pause(pause, shortest, changed)
            await asyncio.sleep(pause)

    async def step(self) -> int:
        """Look once; tell how much changed."""
        watched, began = self._watched(), asyncio.get_running_loop().time()
        if not watched:
            return 0
        if self._desk.sites.lack(self._site.name) is not None:
            self._excuse(watched.values())
            return 0
        result = await self._look(watched)
        if result is None:
            return await self._stall(watched.values(), began)
        attempts = await with_accounts(self._desk, self._site, self._interpreted(result, watched))
        written = await self._write(attempts)
        return await self._stall(watched.values(), began) + written

    def _excuse(self, watched: Iterable[Open]) -> None:
        """Nobody is asked without a credential: that says nothing about the jobs, and nothing about the backend."""
        loop = asyncio.get_running_loop().time()
        for one in watched:
            one.last_seen, one.absent_polls = loop, 0
        self._site.trouble = ""

    def _watched(self) -> dict[str, Open]:
        """Attempts that the backend has, by native id."""
        return {
            one.attempt.native_id: one
            for one in self._desk.open_at(self._site.name)
            if one.attempt.native_id and one.attempt.state != _FINISHING
        }

    async def _look(self, watched: Mapping[str, Open]) -> PollResult | None:
        loop = asyncio.get_running_loop()
        full = not self._site.backend.capabilities.incremental_poll or loop.time() >= self._full_at
        ids, measure = list(watched), measured(watched, loop.time()) if full else []
        async with self._site.handover:
            try:
                with self._desk.transcript.look(self._site.name, Operation.OPERATION_POLL, len(ids)):
                    async with asyncio.timeout(self._desk.settings.backend_deadline.total_seconds()):
                        result = await self._site.backend.poll(ids, "" if full else self._cursor, measure)
            except Exception as error:
                log.warning("poll.failed", exc_info=True, extra={"backend": self._site.name})
                self._site.trouble = storable(f"{type(error).__name__}: {error}")
                return None
        result = replace(result, observations=[received.observation(seen) for seen in result.observations])
        self._site.trouble = ""
        self._cursor = result.cursor
        for one in measure:
            watched[one].measure_at = loop.time() + watched[one].measure_every
        if full:
            self._full_at = loop.time() + self._desk.settings.usage_interval.total_seconds()
        return result

    def _interpreted(self, result: PollResult, watched: Mapping[str, Open]) -> list[Attempt]:
        """The attempts that changed, as they are now."""
        loop, moment = asyncio.get_running_loop().time(), now()
        changed = []
        for seen in result.observations:
            one = watched.get(seen.native_id)
            if one is None:
                continue
            if seen.seen is Seen.PRESENT:
                one.last_seen, one.absent_polls = loop, 0
                one.usage = seen.usage or one.usage
                attempt = observed(one.attempt, seen, moment)
            elif seen.seen is Seen.ABSENT and result.complete and self._lost(one, loop):
                attempt = _lost(one.attempt, moment)
            else:
                continue
            if attempt != one.attempt:
                changed.append(attempt)
        return changed

    def _lost(self, one: Open, loop: float) -> bool:
        """Absent on several complete polls, over some time."""
        if one.absent_polls == 0:
            one.absent_since = loop
        one.absent_polls += 1
        self._full_at = min(self._full_at, loop + self._desk.settings.lost_after.total_seconds() / 4)
        settings = self._desk.settings
        long_enough = loop - one.absent_since >= settings.lost_after.total_seconds()
        return one.absent_polls >= settings.lost_after_polls and long_enough

    async def _write(self, attempts: Sequence[Attempt]) -> int:
        """Write down what changed; tell how much of it could be."""
        if not attempts:
            return 0
        try:
            found = await found_in_logs(self._desk, attempts)
            write = partial(self._write_together, found)
            left = await in_parts(write, attempts, lambda one: one.uid)
        except Exception:
            self.begin_again()  # the cursor has gone past what was seen
            raise
        return len(attempts) - len(left)

    async def _write_together(self, found: Mapping[str, Collection[str]], attempts: Sequence[Attempt]) -> None:
        moment = now()
        by_job = {attempt.job: attempt for attempt in attempts}
        failed = [one for one in attempts if one.final and one.state != JobState.JOB_STATE_SUCCEEDED]
        others = [one.job for one in attempts if one not in failed] if failed else by_job
        async with self._desk.write() as connection:
            jobs = await lock_jobs(connection, others)
            changes = [Change(job, job_after(job, by_job[job.uid], moment), by_job[job.uid]) for job in jobs]
            changes += await after_failures(connection, self._desk, failed, moment, found)
            await self._desk.changes.apply(connection, changes, moment)
        for attempt in attempts:
            if attempt.final:
                self._desk.closed(attempt)
            else:
                self._desk.opened(attempt)
        if any(attempt.state == JobState.JOB_STATE_FINISHING for attempt in attempts):
            self._desk.finishing.set()

    async def _stall(self, watched: Iterable[Open], began: float) -> int:
        """Mark attempts that nobody has seen for too long, nor at the look that began then."""
        settings = self._desk.settings
        # Where changes alone are told, the others are seen only when everything is looked at.
        unseen = 2 * settings.usage_interval.total_seconds() if self._site.backend.capabilities.incremental_poll else 0
        quiet = [
            one
            for one in watched
            if one.last_seen < began - unseen
            and one.attempt.uid in self._desk.open
            and one.attempt.state != JobState.JOB_STATE_STALLED
        ]
        await look_up_patience(self._desk, quiet)
        loop = asyncio.get_running_loop().time()
        silent = [one for one in quiet if one.patience is not None and loop - one.last_seen > one.patience]
        if silent:
            await self._write([_stalled(one.attempt, f"no sign of life for {one.patience:.0f} s") for one in silent])
        return len(silent)


def measured(watched: Mapping[str, Open], moment: float) -> list[str]:
    """Those whose use is asked for now: who has waited longest first."""
    due = sorted((one.measure_at, native_id) for native_id, one in watched.items() if one.measure_at <= moment)
    return [native_id for _, native_id in due[:_MEASURED]]


def _pause(before: float, shortest: float, changed: int) -> float:
    """Longer while nothing changes, and while so much does that fewer and larger transactions carry more."""
    if changed == 0:
        return min(before * 1.5, shortest * _LONGEST_PAUSE)
    return shortest if changed < _MANY else shortest * 3


def observed(attempt: Attempt, seen: Observation, moment: datetime) -> Attempt:
    """The attempt after it was seen at its backend."""
    attempt = attempt._replace(
        node=seen.node or attempt.node,
        queue=seen.queue or attempt.queue,
        start_time=attempt.start_time or seen.start_time,
    )
    if seen.state.final:
        return judged(attempt, seen, moment)
    state = _NATIVE.get(seen.state, attempt.state)
    if state == attempt.state:
        return attempt
    return attempt._replace(state=state, native_state=seen.native_state, reason=Reason.REASON_UNSPECIFIED, message="")


def job_after(job: Job, attempt: Attempt, moment: datetime) -> Job:
    """The job of an attempt that goes on, or succeeded."""
    reason, message = attempt.reason, attempt.message
    if not attempt.final:
        reason, message = why(job, reason, message)
    elif job.desired == DesiredState.DESIRED_STATE_CANCEL:
        message = "it had succeeded before it could be cancelled"
    return moved(job, moment, attempt.state, reason, message, **_kept(job, attempt))


def _kept(job: Job, attempt: Attempt) -> dict[str, Any]:
    values: dict[str, Any] = {"deadline": None if attempt.final else job.deadline}
    if attempt.record.get("application_status"):
        values["application_status"] = attempt.record["application_status"]
    return values


def _lost(attempt: Attempt, moment: datetime) -> Attempt:
    return attempt._replace(
        state=JobState.JOB_STATE_FAILED,
        reason=Reason.REASON_INFRA_LOST,
        message=f"{attempt.backend} does not know it any more, and it left no record",
        end_time=moment,
    )


def _stalled(attempt: Attempt, message: str) -> Attempt:
    return attempt._replace(
        state=JobState.JOB_STATE_STALLED, reason=Reason.REASON_INFRA_HEARTBEAT_LOST, message=message
    )
