"""The one way in which jobs change: rows, counts of arrays, dependents and events in one transaction."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.scheduler.v1.state_pb2 import JobState, Reason
from khomas.kit.database import Prepared, in_values, insert_many, values_param
from khomas.kit.events import EventLog, NewEvent
from khomas.scheduler import tables
from khomas.scheduler.intake.drafts import child_job
from khomas.scheduler.lifecycle import transitions
from khomas.scheduler.lifecycle.dependencies import Verdict, judge
from khomas.scheduler.lifecycle.waiting import waiting
from khomas.scheduler.messages import job_message
from khomas.scheduler.records import FINAL, Attempt, Counts, Dependency, Job, ReasonCode, State
from khomas.scheduler.storable import storable
from khomas.scheduler.store.accounting import charges
from khomas.scheduler.store.bulk import add_many, update_many

# Words of others: of batch systems, nodes, the programs of users.
_TOLD = ("message", "application_status")
_ATTEMPT_TOLD = ("message", "native_id", "native_state", "queue", "node")
# What of a job may change after it was made.
_CHANGING = (
    "uid",
    "state",
    "reason",
    "message",
    "since",
    "desired",
    "attempt",
    "counted",
    "version",
    "application_status",
    "due",
    "next_attempt_time",
    "deadline",
    "waits",
    "memory_factor",
    "wall_factor",
    "backend",
    "update_time",
    "end_time",
    "made",
    "rest_state",
    "rest_reason",
)
_ATTEMPT_CHANGING = (
    "uid",
    "native_id",
    "queue",
    "node",
    "state",
    "reason",
    "message",
    "native_state",
    "exit_code",
    "signal",
    "usage",
    "outputs",
    "record",
    "upload",
    "script_sha256",
    "submit_time",
    "start_time",
    "end_time",
)


@dataclass(frozen=True, slots=True)
class Change:
    """One step of one job. Of an array it changes what its unmade children share; its own state follows."""

    before: Job
    after: Job
    # The attempt after the step, when it takes part in it.
    attempt: Attempt | None = None
    new_attempt: bool = False
    # A child that has had no row so far.
    new_row: bool = False


def moved(
    job: Job,
    now: datetime,
    state: State,
    reason: ReasonCode = Reason.REASON_UNSPECIFIED,
    message: str = "",
    **values: Any,
) -> Job:
    """The job after a step at this moment."""
    ended = state in FINAL
    values = {"due": None, "next_attempt_time": None, **({"deadline": None} if ended else {}), **values}
    return job._replace(
        state=state,
        reason=reason,
        message=message,
        since=now if (state, reason) != (job.state, job.reason) else job.since,
        version=job.version + 1,
        update_time=now,
        end_time=now if ended else None,
        **values,
    )


class Changes:
    """Writes steps of jobs; knows the event log that they go to."""

    def __init__(self, events: EventLog) -> None:
        self.events = events

    async def apply(self, connection: AsyncConnection, changes: Sequence[Change], now: datetime) -> None:
        """Write the steps and what follows from them for arrays and for dependent jobs.

        The caller has read and locked the rows in this transaction.
        """
        changes = [_storable(change) for change in changes]
        while changes:
            changes = await self._level(connection, changes, now)

    async def _level(self, connection: AsyncConnection, changes: Sequence[Change], now: datetime) -> list[Change]:
        for change in changes:
            if not change.before.is_array and change.before.state != change.after.state:
                transitions.check(change.before.state, change.after.state)
        arrays, counts = await self._roll_up(connection, changes, now)
        changes = [change for change in changes if not change.after.is_array] + arrays
        await _write(connection, changes)
        await _charge(connection, changes)
        await self._tell(connection, changes)
        ended = [change.after for change in changes if change.after.final and not change.before.final]
        ended += await _ended_unmade(connection, changes)
        return await self._dependents(connection, ended, counts, now)

    async def _roll_up(
        self, connection: AsyncConnection, changes: Sequence[Change], now: datetime
    ) -> tuple[list[Change], Mapping[str, Counts]]:
        """Move the counts of the arrays, and give the steps of the arrays themselves."""
        given = {change.after.uid: change for change in changes if change.after.is_array}
        parents = {change.after.parent for change in changes if change.after.parent}
        if not parents and not given:
            return [], {}
        rows = {uid: (change.before, change.after) for uid, change in given.items()}
        for array in await lock_jobs(connection, parents - given.keys()):
            rows[array.uid] = (array, array)
        await add_many(connection, tables.count, ("parent", "state", "reason"), "number", _deltas(changes))
        counts = await read_counts(connection, rows)
        steps = []
        for uid, (before, after) in rows.items():
            state = transitions.array_state(counts[uid])
            if state != before.state or uid in given:
                steps.append(Change(before, _array_after(after, state, counts[uid], now)))
        return steps, counts

    async def _tell(self, connection: AsyncConnection, changes: Sequence[Change]) -> None:
        """One event a step; of a job that ended with all its attempts."""
        again = [c.after.uid for c in changes if c.after.final and c.after.attempt > (c.attempt is not None)]
        attempts = await read_attempts(connection, again) if again else {}
        events = []
        for change in changes:
            job = change.after
            if job.is_array and _seen(job) == _seen(change.before):
                continue  # only some of its children got their rows
            ended = job.final and not change.before.final
            shown = attempts.get(job.uid) or ([change.attempt] if ended and change.attempt else [])
            kind = "scheduler.job.finished" if ended else "scheduler.job.changed"
            events.append(NewEvent(kind, job.name, job.uid, job.origin, job_message(job, attempts=shown)))
        await self.events.append(connection, events)

    async def _dependents(
        self, connection: AsyncConnection, ended: Sequence[Job], counts: Mapping[str, Counts], now: datetime
    ) -> list[Change]:
        """Let jobs go on that waited for these, or end them when they wait in vain."""
        if not ended:
            return []
        targets = {job.uid: job for job in ended}
        query = select(tables.dependency).where(
            in_values(tables.dependency.c.target, list(targets)), tables.dependency.c.kept.is_(False)
        )
        found = [Dependency(*row) for row in (await connection.execute(query)).all()]
        if not found:
            return []
        verdicts = {(one.job, one.target): judge(one, targets[one.target], counts.get(one.target)) for one in found}
        kept = [key for key, verdict in verdicts.items() if verdict is Verdict.KEPT]
        rows = [{"job": job, "target": target, "kept": True} for job, target in kept]
        await update_many(connection, tables.dependency, ("job", "target"), rows)
        waiters = await lock_jobs(connection, {one.job for one in found})
        return [
            Change(waiter, _dependent_after(waiter, verdicts, targets, now)) for waiter in waiters if not waiter.final
        ]


async def _charge(connection: AsyncConnection, changes: Iterable[Change]) -> None:
    """Charge what attempts that ended have used to the accounts of their jobs."""
    ended = [(change.after, change.attempt) for change in changes if change.attempt and change.attempt.final]
    await add_many(connection, tables.share_use, ("share", "hour"), "cpu_ms", charges(ended))


async def _ended_unmade(connection: AsyncConnection, changes: Sequence[Change]) -> list[Job]:
    """Children that ended without ever having had a row, those that somebody waits for."""
    arrays = [
        change.after
        for change in changes
        if change.after.unmade and change.after.rest_state in FINAL and change.before.rest_state not in FINAL
    ]
    found = []
    for array in arrays:
        below = select(tables.dependency.c.target).where(child_of(tables.dependency.c.target, array.uid))
        rows = await connection.execute(below.distinct())
        indices = [int(target.rpartition("/")[2]) for target in rows.scalars()]
        found += [child_job(array, index, {}) for index in indices if index >= array.made]
    return found


def _storable(change: Change) -> Change:
    """The step without words that a database or protobuf does not take: they would fail those of everybody."""
    if odd := _odd(change.after, _TOLD):
        change = replace(change, after=change.after._replace(**odd))
    if change.attempt is not None and (odd := _odd(change.attempt, _ATTEMPT_TOLD)):
        change = replace(change, attempt=change.attempt._replace(**odd))
    return change


def _odd(row: Job | Attempt, names: Iterable[str]) -> dict[str, Any]:
    told = {name: getattr(row, name) for name in names}
    return {name: kept for name, text in told.items() if (kept := storable(text)) is not text}


def child_of(column: ColumnElement[str], array: str) -> ColumnElement[bool]:
    """Match uids of children of an array. PostgreSQL takes no BETWEEN of collated text."""
    # "0" is the character after "/".
    return and_(column > f"{array}/", column < f"{array}0")


def _seen(array: Job) -> tuple[object, ...]:
    return array.state, array.reason, array.desired, array.rest_state


def _dependent_after(
    waiter: Job, verdicts: Mapping[tuple[str, str], Verdict], targets: Mapping[str, Job], now: datetime
) -> Job:
    mine = {target: verdict for (job, target), verdict in verdicts.items() if job == waiter.uid}
    for target, verdict in mine.items():
        if verdict in (Verdict.FAILS, Verdict.CANCELS):
            ended = targets[target]
            failed = verdict is Verdict.FAILS
            state = JobState.JOB_STATE_FAILED if failed else JobState.JOB_STATE_CANCELLED
            reason = Reason.REASON_DEPENDENCY_FAILED if failed else Reason.REASON_SUPERSEDED
            what = JobState.Name(ended.state).removeprefix("JOB_STATE_")
            return ended_job(waiter, now, state, reason, f"{ended.name} {what}: {ended.message or 'as it was to'}")
    waits = waiter.waits - sum(verdict is Verdict.KEPT for verdict in mine.values())
    return waiting(waiter._replace(waits=waits, version=waiter.version + 1, update_time=now), now)


def ended_job(job: Job, now: datetime, state: State, reason: ReasonCode, message: str, **values: Any) -> Job:
    """A waiting job, or an array with all its unmade children, after its end."""
    if job.is_array and job.unmade:
        return moved(job, now, job.state, reason, message, rest_state=state, rest_reason=reason, **values)
    return moved(job, now, state, reason, message, **values)


def _array_after(array: Job, state: State, counts: Counts, now: datetime) -> Job:
    by_end = [(counts.of(end), JobState.Name(end).removeprefix("JOB_STATE_").lower()) for end in sorted(FINAL)]
    said = ", ".join(f"{number} {word}" for number, word in by_end if number)
    ended = state in FINAL
    return array._replace(
        state=state,
        reason=_commonest(counts, state)
        if ended
        else array.reason
        if state == array.state
        else Reason.REASON_UNSPECIFIED,
        message=f"of {counts.total} jobs {said}" if said else array.message,
        since=now if state != array.state else array.since,
        version=array.version + 1,
        update_time=now,
        end_time=now if ended else None,
        due=None if ended else array.due,
        deadline=None if ended else array.deadline,
    )


def _commonest(counts: Counts, state: int) -> ReasonCode:
    numbers = {reason: number for (of, reason), number in counts.numbers.items() if of == state and number}
    return max(numbers, key=lambda reason: numbers[reason])


def _deltas(changes: Iterable[Change]) -> list[dict[str, Any]]:
    numbers: Counter[tuple[str, int, int]] = Counter()
    for change in changes:
        before, after = change.before, change.after
        if after.parent:
            numbers[after.parent, before.state, before.reason] -= 1
            numbers[after.parent, after.state, after.reason] += 1
        elif after.is_array:
            numbers[after.uid, before.rest_state, before.rest_reason] -= after.unmade
            numbers[after.uid, after.rest_state, after.rest_reason] += after.unmade
    return [
        {"parent": parent, "state": state, "reason": reason, "number": number}
        for (parent, state, reason), number in sorted(numbers.items())
        if number
    ]


async def _write(connection: AsyncConnection, changes: Sequence[Change]) -> None:
    new = [change.after.values() for change in changes if change.new_row]
    old = [{key: getattr(change.after, key) for key in _CHANGING} for change in changes if not change.new_row]
    await insert_many(connection, tables.job, new)
    await update_many(connection, tables.job, ("uid",), old)
    made = [change.attempt.values() for change in changes if change.attempt and change.new_attempt]
    known = [change.attempt for change in changes if change.attempt and not change.new_attempt]
    await insert_many(connection, tables.attempt, made)
    await update_many(
        connection, tables.attempt, ("uid",), [{key: getattr(one, key) for key in _ATTEMPT_CHANGING} for one in known]
    )


_JOBS = Prepared(select(tables.job).where(values_param(tables.job.c.uid, "uids")))
_LOCKED_JOBS = Prepared(
    select(tables.job).where(values_param(tables.job.c.uid, "uids")).order_by(tables.job.c.uid).with_for_update()
)
_COUNTS = Prepared(select(tables.count).where(values_param(tables.count.c.parent, "parents")))
_ATTEMPTS = Prepared(
    select(tables.attempt)
    .where(values_param(tables.attempt.c.job, "jobs"))
    .order_by(tables.attempt.c.job, tables.attempt.c.number)
)


async def lock_jobs(connection: AsyncConnection, uids: Iterable[str]) -> list[Job]:
    """Read jobs that are to be changed in this transaction, in one order for everybody."""
    wanted = list(uids)
    return [Job._make(row) for row in await _LOCKED_JOBS.values(connection, uids=wanted)] if wanted else []


async def read_jobs(connection: AsyncConnection, uids: Iterable[str]) -> list[Job]:
    """Read jobs, those that exist."""
    return [Job._make(row) for row in await _JOBS.values(connection, uids=list(uids))]


async def read_counts(connection: AsyncConnection, arrays: Iterable[str]) -> dict[str, Counts]:
    """Read the counts of arrays."""
    wanted = list(arrays)
    counts = {uid: Counts({}) for uid in wanted}
    if wanted:
        for parent, state, reason, number in await _COUNTS.rows(connection, parents=wanted):
            counts[parent].numbers[state, reason] = number
    return counts


async def read_attempts(connection: AsyncConnection, jobs: Iterable[str]) -> dict[str, list[Attempt]]:
    """Read the attempts of jobs, oldest first."""
    attempts: dict[str, list[Attempt]] = {}
    for row in await _ATTEMPTS.values(connection, jobs=list(jobs)):
        attempt = Attempt._make(row)
        attempts.setdefault(attempt.job, []).append(attempt)
    return attempts
