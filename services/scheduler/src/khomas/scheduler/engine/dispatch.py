"""Hands jobs over: attempts are durable before a backend is asked, and never handed over twice."""

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.scheduler.v1.state_pb2 import JobState, Reason
from khomas.scheduler import tables
from khomas.scheduler.backends import received
from khomas.scheduler.backends.interface import SubmitOutcome, Submitted
from khomas.scheduler.engine.candidates import Candidate, Room, Turn, whose_turn
from khomas.scheduler.engine.desk import Desk, now
from khomas.scheduler.engine.doubtful import NOT_FOUND_TIMES, Doubtful, accepted
from khomas.scheduler.engine.failing import after_failures, why
from khomas.scheduler.engine.parts import EVERYBODYS, in_parts
from khomas.scheduler.engine.preparation import Preparation, Prepared, Refused
from khomas.scheduler.engine.recalling import Recalling
from khomas.scheduler.engine.transcript import Operation
from khomas.scheduler.engine.waiting_room import WaitingRoom
from khomas.scheduler.placement.locality import inputs_of
from khomas.scheduler.placement.sites import Site, Sites
from khomas.scheduler.records import Attempt, Job
from khomas.scheduler.storable import storable
from khomas.scheduler.store.bulk import update_many
from khomas.scheduler.store.changes import Change, ended_job, lock_jobs, moved

log = logging.getLogger(__name__)

_BATCH = 1000
_THROTTLED = timedelta(seconds=5)
_AHEAD_SECONDS = 5.0
_STUCK_AGAIN = timedelta(minutes=1)


class Dispatcher:
    """Takes due jobs to backends."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.recalling = Recalling(desk)
        self._preparation = Preparation(desk, self.recalling)
        self._waiting_room = WaitingRoom(desk)
        self._doubtful = Doubtful(desk, self._preparation, self._hand_over)
        self._pause = desk.settings.find_pause.total_seconds()
        # How far down the line it is looked, after turns of jobs whose backends were all full.
        self._reach = 0
        # When the inputs of later jobs are looked at again.
        self._ahead_at = 0.0

    async def run(self) -> None:
        """Hand over whenever something is due and there is room."""
        await self._waiting_room.empty()
        while True:
            if not await self.step():
                await self._desk.due.wait(self._desk.settings.poll.total_seconds())

    async def step(self) -> bool:
        """Hand over one batch; tell whether there was one."""
        found = await self._doubtful.step()
        offers = self._desk.sites.offers()
        free = sum(offer.room for offer in offers)
        if all(offer.closed for offer in offers):
            free = _BATCH  # test jobs go on, the others are told why they wait, each once
        room = Room(min(_BATCH, free), sum(offer.max_jobs for offer in offers))
        if room.free == 0:
            return found
        await self._waiting_room.call({offer.name: offer.room for offer in offers})
        reach, self._reach = self._reach, 0
        if not self._desk.accounting.tree:  # accounts divide the slots that there are
            room = replace(room, free=min(_BATCH, max(room.free, reach)))
        moment = now()
        async with self._desk.database.read() as connection:
            turn = await whose_turn(connection, self._desk.blueprints, self._desk.accounting, moment, room)
        if not turn.candidates:
            return found
        await self._hand_over(await self._attempts(turn, room, moment))
        return True

    async def _attempts(self, turn: Turn, room: Room, moment: datetime) -> list[Prepared]:
        """Begin attempts: of all, or where that fails of half of them, the others at the next step, until one is left.

        That one waits, and says why: what is wrong with it must not hold up the others.
        """
        while True:
            try:
                return await self._begun(turn, room, moment)
            except EVERYBODYS:
                raise
            except Exception as error:
                [first, *others] = turn.candidates
                log.exception("dispatch.failed", extra={"job": first.job.uid, "others": len(others)})
                if others:
                    turn = _part(turn, len(turn.candidates) // 2)
                    continue
                said = f"it cannot be got ready: {type(error).__name__}: {error}"
                stuck = Refused(first, Reason.REASON_INFRA_ENVIRONMENT, said, _STUCK_AGAIN)
                return await self._begin(turn, [stuck], [], moment)

    async def _begun(self, turn: Turn, room: Room, moment: datetime) -> list[Prepared]:
        async with self._desk.database.read() as connection:
            prepared, refused = await self._preparation.prepare(connection, turn.candidates, moment)
            if any(no.reason == Reason.REASON_WAIT_STAGE_FROM_TAPE for no in refused):
                await self._look_ahead(connection, room, moment)
        if sum(bool(no.full) for no in refused) == len(turn.candidates):
            self._reach = 2 * room.free
        try:
            return await self._begin(*_kept_back(turn, refused), prepared, moment)
        except Exception:
            self._desk.abandoned += [one.attempt.upload for one in prepared if one.attempt.upload]
            raise

    async def _look_ahead(self, connection: AsyncConnection, room: Room, moment: datetime) -> None:
        """Have the inputs of more jobs recalled than there is room for: a tape system wants to know all at once."""
        loop = asyncio.get_running_loop().time()
        if loop < self._ahead_at:
            return
        self._ahead_at = loop + _AHEAD_SECONDS
        more = replace(room, free=_BATCH)
        turn = await whose_turn(connection, self._desk.blueprints, self._desk.accounting, moment, more)
        names = {
            name
            for one in turn.candidates
            for name in inputs_of(one.blueprint, one.job.index, one.job.parent or one.job.uid)
        }
        await self.recalling.ahead(names)

    async def _begin(
        self, turn: Turn, refused: Sequence[Refused], prepared: Sequence[Prepared], moment: datetime
    ) -> list[Prepared]:
        """Make the attempts durable; jobs that changed meanwhile are left out."""
        began: list[Prepared] = []
        changes: list[Change] = []
        wanted = [one.job.uid for one in turn.candidates if not one.new]
        async with self._desk.write() as connection:
            rows = {job.uid: job for job in await lock_jobs(connection, [*wanted, *turn.pages])}
            pages = {uid: number for uid, (array, number) in turn.pages.items() if _same_page(array, rows[uid])}
            for one in prepared:
                before = _current(one.candidate, rows, pages)
                if before is not None:
                    changes.append(_begun(one, before, moment))
                    began.append(one)
            arrays = {uid: _page_taken(rows[uid], number) for uid, number in pages.items()}
            waits = [
                (no, Change(before, _refused_job(no, arrays.pop(before.uid, before), moment), new_row=no.candidate.new))
                for no in refused
                if (before := _current(no.candidate, rows, pages)) is not None
            ]
            same = [{"uid": one.after.uid, "due": one.after.due} for _, one in waits if not _is_step(one)]
            await update_many(connection, tables.job, ("uid",), same)
            changes += [change for _, change in waits if _is_step(change)]
            changes += [Change(rows[uid], after) for uid, after in arrays.items()]
            await self._desk.changes.apply(connection, changes, moment)
        for one in began:
            self._desk.opened(one.attempt)
        for no, change in waits:
            if no.full and change.after.due is not None:
                self._waiting_room.enter(change.before, change.after.due, no.full)
        kept = {one.attempt.uid for one in began}
        self._desk.abandoned += [
            one.attempt.upload for one in prepared if one.attempt.upload and one.attempt.uid not in kept
        ]
        return began

    async def _hand_over(self, prepared: Sequence[Prepared]) -> None:
        by_site: dict[str, list[Prepared]] = {}
        for one in prepared:
            by_site.setdefault(one.attempt.backend, []).append(one)
        calls = [self._hand_over_at(self._desk.sites[site], some) for site, some in by_site.items()]
        # Nobody looks for what is still on its way: all are waited for.
        for error in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(error, BaseException):
                raise error

    async def _hand_over_at(self, site: Site, prepared: Sequence[Prepared]) -> None:
        size = site.backend.capabilities.max_batch
        self._doubt(prepared)
        for start in range(0, len(prepared), size):
            some = prepared[start : start + size]
            async with site.handover:
                told = list(zip(some, await self._submit(site, some), strict=True))
                await in_parts(self._note, told, lambda pair: pair[0].attempt.uid)
        site.got_jobs.set()

    def _doubt(self, prepared: Sequence[Prepared]) -> None:
        """Until what became of the handover is written down: whatever goes wrong, it is looked for later."""
        for one in prepared:
            if one.attempt.uid in self._desk.open:
                known = self._desk.open[one.attempt.uid]
                known.find_at, known.not_found = asyncio.get_running_loop().time() + self._pause, 0

    async def _submit(self, site: Site, prepared: Sequence[Prepared]) -> list[SubmitOutcome]:
        uids = [one.attempt.uid for one in prepared]
        try:
            with self._desk.transcript.of(site.name, Operation.OPERATION_SUBMIT, uids):
                async with asyncio.timeout(self._desk.settings.backend_deadline.total_seconds()):
                    told = await site.backend.submit([one.item for one in prepared])
                    return [received.outcome(one) for one in told]
        except Exception as error:
            log.exception("submit.unknown", extra={"backend": site.name, "jobs": len(prepared)})
            message = storable(f"{type(error).__name__}: {error}")
            return [SubmitOutcome(one.item.token, Submitted.UNKNOWN, message=message) for one in prepared]

    async def _note(self, pairs: Sequence[tuple[Prepared, SubmitOutcome]]) -> None:
        """Write down what became of a handover, in one transaction."""
        moment = now()
        prepared, outcomes = [one for one, _ in pairs], [outcome for _, outcome in pairs]
        attempts = {one.attempt.job: one.attempt for one in prepared}
        told = {one.attempt.job: outcome for one, outcome in pairs}
        rejected = [one.attempt for one in prepared if told[one.attempt.job].kind is Submitted.REJECTED]
        messages = {attempt.uid: told[attempt.job].message for attempt in rejected}
        ended = [_rejected(attempt, messages[attempt.uid], moment) for attempt in rejected]
        async with self._desk.write() as connection:
            changes = []
            for job in await lock_jobs(connection, attempts):
                if told[job.uid].kind is Submitted.ACCEPTED:
                    changes.append(accepted(job, attempts[job.uid], told[job.uid].native_id, moment))
                elif told[job.uid].kind is Submitted.UNKNOWN:
                    changes.append(_unknown(job, attempts[job.uid], told[job.uid].message, moment))
            failed = await after_failures(connection, self._desk, ended, moment)
            await self._desk.changes.apply(connection, [*changes, *failed], moment)
        for change in changes:
            if change.attempt is not None:
                self._desk.opened(change.attempt)
        for attempt in ended:
            self._desk.closed(attempt)
        _learn(self._desk.sites, prepared, outcomes)
        loop = asyncio.get_running_loop().time()
        for uid, outcome in told.items():
            if outcome.kind in (Submitted.UNKNOWN, Submitted.THROTTLED):
                pause = outcome.retry_after or (_THROTTLED if outcome.kind is Submitted.THROTTLED else None)
                open_one = self._desk.open[attempts[uid].uid]
                open_one.find_at = loop + (pause.total_seconds() if pause else self._pause)
                # Throttled ones are known not to be there.
                open_one.not_found = NOT_FOUND_TIMES if outcome.kind is Submitted.THROTTLED else 0


def _learn(sites: Sites, prepared: Sequence[Prepared], outcomes: Sequence[SubmitOutcome]) -> None:
    """Note which submissions went wrong. A call without an answer is one, whatever it carried."""
    reputation = sites[prepared[0].attempt.backend].reputation
    if any(outcome.kind in (Submitted.ACCEPTED, Submitted.THROTTLED) for outcome in outcomes):
        reputation.handed_over()
        return
    refused = [outcome.message for outcome in outcomes if outcome.kind is Submitted.REJECTED]
    for message in refused or [outcomes[0].message]:
        reputation.refuses(message)


def _current(candidate: Candidate, rows: Mapping[str, Job], pages: Mapping[str, int]) -> Job | None:
    """The job as it is now, None when somebody changed it since it was looked at."""
    job = candidate.job
    if candidate.new:
        return job if job.parent in pages else None
    row = rows.get(job.uid)
    return row if row is not None and row.version == job.version else None


def _same_page(seen: Job, array: Job) -> bool:
    """Whether the unmade children of an array are as they were."""
    same = ("desired", "rest_state", "made")
    return array.due is not None and all(getattr(seen, name) == getattr(array, name) for name in same)


def _begun(one: Prepared, before: Job, moment: datetime) -> Change:
    after = moved(
        before,
        moment,
        JobState.JOB_STATE_SUBMITTING,
        attempt=one.attempt.number,
        backend=one.attempt.backend,
        application_status="",
        deadline=before.deadline,
    )
    return Change(before, after, one.attempt, new_attempt=True, new_row=one.candidate.new)


def _kept_back(turn: Turn, refused: Sequence[Refused]) -> tuple[Turn, list[Refused]]:
    """Children at the end of a page whose backends are full get no rows yet: their array waits."""
    full = {no.candidate.job.uid: no for no in refused if no.full and no.candidate.new}
    pages, waits = dict(turn.pages), [no for no in refused if no.candidate.job.uid not in full]
    for uid, (array, number) in turn.pages.items():
        end = array.made + number
        while no := full.pop(f"{uid}/{end - 1}", None):
            end -= 1
            first = no
        if end < array.made + number:
            pages[uid] = (array, end - array.made)
            waits.append(replace(first, candidate=Candidate(array, first.candidate.blueprint)))
    return replace(turn, pages=pages), [*waits, *full.values()]


def _refused_job(no: Refused, before: Job, moment: datetime) -> Job:
    if no.again is None:
        return ended_job(before, moment, JobState.JOB_STATE_FAILED, no.reason, no.message)
    due = moment + no.again
    if not before.is_array:
        after = moved(before, moment, before.state, no.reason, no.message, due=due)
    else:
        # What its unmade children share.
        waits = before._replace(reason=no.reason, rest_reason=no.reason, message=no.message)
        since = before.since if no.reason == before.reason else moment
        after = waits._replace(due=due, since=since, version=before.version + 1, update_time=moment)
    same = (before.reason, before.rest_reason, before.message) == (after.reason, after.rest_reason, after.message)
    # That it still waits for the same is no step.
    return before._replace(due=due) if same else after


def _is_step(change: Change) -> bool:
    return change.new_row or change.after.version > change.before.version or change.after.made > change.before.made


def _part(turn: Turn, number: int) -> Turn:
    """The first so many, with as many rows of new children as are among them."""
    candidates = turn.candidates[:number]
    new = Counter(one.job.parent for one in candidates if one.new)
    pages = {uid: (array, new[uid]) for uid, (array, _) in turn.pages.items() if uid in new}
    return Turn(candidates, pages)


def _page_taken(array: Job, number: int) -> Job:
    made = array.made + number
    return array._replace(made=made, due=array.due if made < array.total else None)


def _unknown(job: Job, attempt: Attempt, message: str, moment: datetime) -> Change:
    said = f"whether {attempt.backend} has it is not known: {message}"
    reason = Reason.REASON_INFRA_SUBMIT_UNKNOWN
    doubtful = attempt._replace(reason=reason, message=said)
    return Change(job, moved(job, moment, JobState.JOB_STATE_SUBMITTING, *why(job, reason, said)), doubtful)


def _rejected(attempt: Attempt, message: str, moment: datetime) -> Attempt:
    return attempt._replace(
        state=JobState.JOB_STATE_FAILED,
        reason=Reason.REASON_INFRA_SUBMIT_REJECTED,
        message=f"{attempt.backend} refused it: {message}",
        end_time=moment,
    )
