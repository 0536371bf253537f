"""Does what rules want: lists their files, places copies, starts transfers, counts. In batches, again after a crash."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from sqlalchemy import String, case, cast, delete, literal, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.catalog.v1 import file_pb2
from khomas.api.storage.v1 import rule_pb2 as pb
from khomas.kit.database import Database, in_values
from khomas.kit.errors import DomainError
from khomas.kit.events import EventLog
from khomas.kit.leases import FREE, claim
from khomas.storage.elements.elements import Elements, element_ids
from khomas.storage.elements.space import usages
from khomas.storage.rows import mapping
from khomas.storage.rules import copies
from khomas.storage.rules.elements import places_of
from khomas.storage.rules.events import touch
from khomas.storage.rules.explaining import in_short
from khomas.storage.rules.membership import Membership
from khomas.storage.rules.placing import Copy, CopyState, Located, Placer, Wish, planned
from khomas.storage.rules.protection import decide_alone, good_replicas
from khomas.storage.rules.rows import COUNTS, State, rule_event
from khomas.storage.rules.starting import Starting
from khomas.storage.rules.tables import rule, rule_copy, rule_join

log = logging.getLogger(__name__)

_RULES_AT_ONCE = 5
_BATCH = 1000


class _LostLease(Exception):
    """Somebody else works on the rule now."""


@dataclass(slots=True)
class _Work:
    """A rule that this process works on."""

    row: Mapping[str, Any]
    placer: Placer
    wish: Wish

    @property
    def uid(self) -> str:
        return str(self.row["uid"])


class Evaluation:
    """Works on rules that are due; each step is a transaction of its own, and can be done again."""

    def __init__(
        self,
        database: Database,
        event_log: EventLog,
        elements: Elements,
        membership: Membership,
        starting: Starting,
        *,
        owner: str,
        lease: timedelta,
        pause: timedelta,
    ) -> None:
        self._database = database
        self._log = event_log
        self._elements = elements
        self._membership = membership
        self._starting = starting
        self._owner = owner
        self._lease = lease
        self._pause = pause

    async def work(self) -> None:
        """Do everything that is due."""
        await self._end_lifetimes()
        await self._notice_failures()
        while rows := await self._claim():
            for row in rows:
                await self._evaluate(row)

    async def _evaluate(self, row: Mapping[str, Any]) -> None:
        try:
            async with self._database.read() as connection:
                used = await usages(connection)
            self._elements.forget()
            places = places_of(row["expression"], await self._elements.all(), used)
            wish = Wish(row["copies"], listing=abs(row["listing"]), now=datetime.now(UTC))
            work = _Work(row, Placer(places), wish)
            await self._keep_together(work)
            if row["list_due"] or row["listing"] <= 0:
                await self._list(work)
            await self._joins(work)
            await self._try_again(work)
            await self._pending(work)
            if not row["suspended"]:
                await self._start(work)
            await self._finish(work)
        except _LostLease:
            return
        except (DomainError, grpc.aio.AioRpcError) as error:
            message = error.message if isinstance(error, DomainError) else f"the catalogue says: {error.details()}"
            log.warning("rule.postponed", extra={"rule": row["uid"], "error": message})
            await self._postpone(row, message)

    async def _claim(self) -> list[Mapping[str, Any]]:
        now = datetime.now(UTC)
        due = (
            select(rule.c.uid)
            .where(rule.c.due_time <= now)
            .order_by(rule.c.priority.desc(), rule.c.due_time)
            .limit(_RULES_AT_ONCE)
        )
        async with self._database.read() as connection:
            if (await connection.execute(due.limit(1))).first() is None:
                return []
        async with self._database.write() as connection:
            rows = await claim(connection, rule, due, owner=self._owner, now=now, until=now + self._lease)
        return [mapping(row) for row in rows]

    async def _list(self, work: _Work) -> None:
        """Go through all files. A number below zero says that a listing has begun and has not come to its end."""
        number = abs(work.row["listing"]) + 1
        await self._set(work, listing=-number, list_due=False)
        work.wish = replace(work.wish, listing=number)
        async for files in self._membership.listed(work.row):
            for start in range(0, len(files), _BATCH):
                await self._place(work, files[start : start + _BATCH])
        async with self._database.write() as connection:
            await self._hold(connection, work)
            left = (rule_copy.c.rule_uid == work.uid, rule_copy.c.listing != number)
            unwanted = await copies.drop_where(connection, *left)
            await connection.execute(update(rule).where(rule.c.uid == work.uid).values(listing=number))
        await self._starting.cancel(work.row, unwanted)

    async def _keep_together(self, work: _Work) -> None:
        """Choose where all files go, if they belong together and their places are not chosen yet, or are gone."""
        if work.row["grouping"] != pb.ReplicationRule.GROUPING_ALL:
            return
        kept = work.row["places"]
        places = work.placer.group(work.wish.copies, 0, {}, kept)
        if places != kept or len(places) < work.wish.copies:
            total, there = await self._membership.sizes(work.row)
            places = work.placer.group(work.wish.copies, total, there, kept)
            await self._set(work, places=places)
        work.wish = replace(work.wish, together=tuple(places))

    async def _place(self, work: _Work, files: Sequence[file_pb2.File], joined: Sequence[tuple[str, int]] = ()) -> None:
        """Bring the copies of a batch of files in line, in one transaction with a fixed number of statements."""
        uids = [file.uid for file in files]
        async with self._database.write() as connection:
            await self._hold(connection, work)
            before = await copies.of_files(connection, work.uid, uids)
            going = await copies.being_deleted(connection, uids)
            elements = await element_ids(connection)
            there = [_located(file, elements, going) for file in files]
            plans = [planned(one, before.get(one.uid, ()), work.wish, work.placer) for one in there]
            known = {copy for some in before.values() for copy in some}
            changed = [copy for plan in plans for copy in plan.kept if copy not in known]
            await copies.write(connection, [(work.uid, copy) for copy in changed])
            unwanted = await copies.drop(connection, work.uid, [copy for plan in plans for copy in plan.dropped])
            await _joined(connection, work.uid, joined)
        await self._starting.cancel(work.row, unwanted)

    async def _joins(self, work: _Work) -> None:
        """Take in files that have joined, and let go of those that match no longer."""
        query = select(rule_join.c.file, rule_join.c.times).where(rule_join.c.rule_uid == work.uid).limit(_BATCH)
        while True:
            async with self._database.read() as connection:
                named = [(row.file, row.times) for row in (await connection.execute(query)).all()]
            if not named:
                return
            members, others = await self._membership.judged(work.row, [name for name, _ in named])
            if others:
                async with self._database.write() as connection:
                    await self._hold(connection, work)
                    left = (rule_copy.c.rule_uid == work.uid, in_values(rule_copy.c.file, others))
                    unwanted = await copies.drop_where(connection, *left)
                await self._starting.cancel(work.row, unwanted)
            await self._place(work, members, named)

    async def _try_again(self, work: _Work) -> None:
        """Have other places chosen for failed transfers; forget after a pause that places have failed."""
        columns = rule_copy.c
        pending = {"state": CopyState.PENDING, "storage_element": "", "transfer_uid": ""}
        ours = (columns.rule_uid == work.uid, columns.state_time <= datetime.now(UTC) - self._pause)
        async with self._database.write() as connection:
            await self._hold(connection, work)
            stuck = update(rule_copy).where(*ours, columns.state == CopyState.STUCK)
            await connection.execute(stuck.values(**pending, refused=""))
            while rows := await copies.failed(connection, [work.uid], _BATCH):
                await copies.write(connection, [(work.uid, _failed(copies.copy_of(row), row.error)) for row in rows])
            # Whose transfer ended long ago without a word of the catalogue: it is asked.
            forsaken = update(rule_copy).where(*ours, copies.without_transfer())
            await connection.execute(forsaken.values(**pending))

    async def _pending(self, work: _Work) -> None:
        """Choose places for copies that have none."""
        which = (rule_copy.c.rule_uid == work.uid, rule_copy.c.state == CopyState.PENDING)
        query = select(rule_copy.c.file_uid).where(*which).distinct().limit(_BATCH)
        while True:
            async with self._database.read() as connection:
                uids = list((await connection.scalars(query)).all())
            if not uids:
                return
            files, leaving, gone = await self._membership.by_uid(uids)
            async with self._database.write() as connection:
                await self._hold(connection, work)
                await copies.drop_where(connection, which[0], in_values(rule_copy.c.file_uid, gone))
                stuck = {"state": CopyState.STUCK, "message": "The file is being deleted.", "transfer_uid": ""}
                waiting = update(rule_copy).where(*which, in_values(rule_copy.c.file_uid, leaving))
                await connection.execute(waiting.values(**stuck, state_time=datetime.now(UTC)))
            if files:
                await self._place(work, files)

    async def _start(self, work: _Work) -> None:
        """Make transfers for copies that have none, and note which ones."""
        which = (rule_copy.c.state == CopyState.REPLICATING, rule_copy.c.transfer_uid == "")
        query = select(rule_copy).where(rule_copy.c.rule_uid == work.uid, *which).limit(_BATCH)
        while True:
            async with self._database.read() as connection:
                wanted = [copies.copy_of(row) for row in (await connection.execute(query)).all()]
            if not wanted:
                return
            started = await self._starting.start(work.row, wanted)
            before = dict(zip(started, wanted, strict=True))
            async with self._database.write() as connection:
                await self._hold(connection, work)
                now = await copies.of_files(connection, work.uid, {copy.file_uid for copy in wanted})
                same = {copy for some in now.values() for copy in some}
                # What an event has changed meanwhile stays as it is.
                await copies.write(connection, [(work.uid, copy) for copy in started if before[copy] in same])

    async def _finish(self, work: _Work) -> None:
        """Count, tell what has changed, and say when to look again: at once if something has happened meanwhile."""
        now = datetime.now(UTC)
        async with self._database.write() as connection:
            await self._hold(connection, work)
            counted = await copies.counts(connection, work.uid)
            values: dict[str, Any] = {name: getattr(counted, name) for name in COUNTS}
            stuck = await copies.reasons(connection, work.uid) if counted.stuck_copies else {}
            values |= {"state": _state(work.row, values), "message": in_short(stuck)}
            changed = any(work.row[name] != value for name, value in values.items())
            if values["state"] != work.row["state"]:
                values["state_time"] = now
            later = now + self._pause if counted.stuck_copies or counted.replicating_copies else None
            time = rule.c.due_time.type
            due = case((rule.c.touched == work.row["touched"], literal(later, time)), else_=literal(now, time))
            statement = update(rule).where(rule.c.uid == work.uid).values(**values, **FREE, due_time=due)
            row = (await connection.execute(statement.returning(rule))).one()
            await self._log.append(connection, [rule_event(mapping(row))] if changed else [])

    async def _postpone(self, row: Mapping[str, Any], message: str) -> None:
        later = datetime.now(UTC) + min(self._pause, timedelta(seconds=10))
        held = (rule.c.uid == row["uid"], rule.c.lease_epoch == row["lease_epoch"])
        async with self._database.write() as connection:
            await connection.execute(update(rule).where(*held).values(**FREE, due_time=later, message=message))

    async def _hold(self, connection: AsyncConnection, work: _Work) -> None:
        """Renew the lease in the transaction of a change, or give up: then somebody else has it.

        Copies are changed by one transaction at a time, so none waits for another one that waits for it.
        """
        await decide_alone(connection)
        held = (rule.c.uid == work.uid, rule.c.lease_epoch == work.row["lease_epoch"])
        until = datetime.now(UTC) + self._lease
        if not (await connection.execute(update(rule).where(*held).values(lease_expire_time=until))).rowcount:
            raise _LostLease

    async def _set(self, work: _Work, **values: object) -> None:
        async with self._database.write() as connection:
            await self._hold(connection, work)
            await connection.execute(update(rule).where(rule.c.uid == work.uid).values(**values))

    async def _end_lifetimes(self) -> None:
        """Delete rules that are over: their protections are released, their transfers cancelled."""
        query = select(rule).where(rule.c.expire_time <= datetime.now(UTC)).limit(_BATCH)
        async with self._database.read() as connection:
            over = [mapping(row) for row in (await connection.execute(query)).all()]
        for row in over:
            async with self._database.write() as connection:
                unwanted = await end(connection, self._log, row)
            await self._starting.cancel(row, unwanted)

    async def _notice_failures(self) -> None:
        async with self._database.read() as connection:
            uids = await copies.rules_with_failures(connection)
        if uids:
            async with self._database.write() as connection:
                await decide_alone(connection)
                await touch(connection, uids)


async def end(connection: AsyncConnection, event_log: EventLog, row: Mapping[str, Any]) -> list[str]:
    """Delete a rule with its protections; return its transfers that are under way. Nothing if it is gone already."""
    await decide_alone(connection)
    gone = (await connection.execute(delete(rule).where(rule.c.uid == row["uid"]).returning(rule.c.uid))).first()
    if gone is None:
        return []
    await connection.execute(delete(rule_join).where(rule_join.c.rule_uid == row["uid"]))
    await event_log.append(connection, [rule_event(row, "deleted")])
    return await copies.drop_where(connection, rule_copy.c.rule_uid == row["uid"])


async def _joined(connection: AsyncConnection, rule_uid: str, named: Sequence[tuple[str, int]]) -> None:
    """Forget that files have joined, but for those that were named again meanwhile."""
    if not named:
        return
    files = in_values(rule_join.c.file, [name for name, _ in named])
    same = in_values(rule_join.c.file + "/" + cast(rule_join.c.times, String), [f"{name}/{n}" for name, n in named])
    await connection.execute(delete(rule_join).where(rule_join.c.rule_uid == rule_uid, files, same))


def _located(file: file_pb2.File, elements: set[str], going: set[tuple[str, str]]) -> Located:
    return Located(file.uid, file.name, file.size_bytes, frozenset(good_replicas(file, elements, going)))


def _failed(copy: Copy, error: str) -> Copy:
    refused = ",".join(sorted(copy.refused_places | {copy.storage_element}))
    return replace(copy, refused=refused, state=CopyState.PENDING, storage_element="", transfer_uid="", message=error)


def _state(row: Mapping[str, Any], counted: Mapping[str, int]) -> State.ValueType:
    if row["suspended"]:
        return State.STATE_SUSPENDED
    if counted["stuck_copies"]:
        return State.STATE_STUCK
    return State.STATE_REPLICATING if counted["replicating_copies"] else State.STATE_OK
