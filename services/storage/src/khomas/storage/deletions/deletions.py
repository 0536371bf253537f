"""Deletions: planned by the catalogue's events, done after the undo window, confirmed to the catalogue."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import grpc
from sqlalchemy import Row, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.catalog.v1 import file_pb2
from khomas.api.storage.v1 import storage_service_pb2
from khomas.api.storage.v1 import transfer_pb2 as pb
from khomas.kit.database import Database, in_values, insert_many, rows_table
from khomas.kit.errors import DomainError
from khomas.kit.events import EventLog, NewEvent
from khomas.kit.filtering import fields, where
from khomas.kit.ids import new_uids
from khomas.kit.leases import claim
from khomas.kit.paging import Ordering, list_page
from khomas.storage.catalog import Catalog
from khomas.storage.deletions.erasing import erased, pause
from khomas.storage.deletions.rates import not_far_ahead, spread
from khomas.storage.elements.elements import Element, Elements, Protocols
from khomas.storage.errors import NoReplica
from khomas.storage.known_replicas import coming
from khomas.storage.reconciling.policies import Policies
from khomas.storage.rows import mapping, mappings
from khomas.storage.rules.protection import ReplicaKey, objections
from khomas.storage.tables import deletion, transfer

log = logging.getLogger(__name__)

State = pb.Deletion.State
_FIELDS = {
    "state": fields.enum(deletion.c.state, pb.Deletion.State),
    "file": fields.text(deletion.c.file),
    "storage_element": fields.text(deletion.c.storage_element),
    "reason": fields.enum(deletion.c.reason, pb.DeletionReason),
    "create_time": fields.time(deletion.c.create_time),
}
_ORDER = Ordering(fields={"create_time": deletion.c.create_time}, unique=deletion.c.uid, default="create_time desc")
_BATCH = 500
_SETTLED = ("state", "reason", "message", "attempts", "next_attempt_time", "end_time")


@dataclass(frozen=True, slots=True)
class _Result:
    """How one try ended; with a message it has failed."""

    row: Row[Any]
    state: pb.Deletion.State.ValueType
    message: str = ""
    # Why it waits.
    reason: pb.DeletionReason.ValueType = pb.DELETION_REASON_UNSPECIFIED
    # Not before this moment; else by the reason.
    at: datetime | None = None


async def plan(connection: AsyncConnection, event_log: EventLog, files: Mapping[str, file_pb2.File]) -> None:
    """Bring the plan in line with files, by uid, as they are now: those DELETING get deletions, others lose them."""
    of_files = (in_values(deletion.c.file_uid, list(files)), deletion.c.single.is_(False))
    query = select(deletion).where(*of_files, deletion.c.state == State.STATE_WAITING)
    waiting = {(row.file_uid, row.storage_element) for row in (await connection.execute(query)).all()}
    deleting = {uid: file for uid, file in files.items() if file.state == file_pb2.File.STATE_DELETING}
    rows = [
        row for file in deleting.values() for row in _rows(file) if (file.uid, row["storage_element"]) not in waiting
    ]
    for row, uid in zip(rows, new_uids(len(rows)) if rows else (), strict=True):
        row["uid"] = uid
    await insert_many(connection, deletion, rows)
    undone = {uid for uid, _ in waiting if files[uid].state == file_pb2.File.STATE_ACTIVE}
    changed = [deletion_event(row) for row in rows]
    if undone:
        statement = (
            update(deletion)
            .where(
                in_values(deletion.c.file_uid, undone),
                deletion.c.single.is_(False),
                deletion.c.state == State.STATE_WAITING,
            )
            .values(state=State.STATE_UNDONE, end_time=datetime.now(UTC))
            .returning(deletion)
        )
        changed += [deletion_event(row) for row in mappings(await connection.execute(statement))]
    await event_log.append(connection, changed)


class Deletions:
    """Deletes replicas whose undo window is over."""

    def __init__(
        self,
        database: Database,
        event_log: EventLog,
        catalog: Catalog,
        elements: Elements,
        protocols: Protocols,
        policies: Policies,
        *,
        owner: str,
        lease: timedelta,
        pause: timedelta,
    ) -> None:
        self._database = database
        self._log = event_log
        self._catalog = catalog
        self._elements = elements
        self._protocols = protocols
        self._policies = policies
        self._owner = owner
        self._lease = lease
        self._pause = pause

    async def page(
        self, request: storage_service_pb2.ListDeletionsRequest
    ) -> storage_service_pb2.ListDeletionsResponse:
        """Read a page."""
        query = select(deletion).where(where(request.filter, _FIELDS))
        async with self._database.read() as connection:
            page = await list_page(connection, query, request, _ORDER)
        return storage_service_pb2.ListDeletionsResponse(
            deletions=[deletion_proto(mapping(row)) for row in page.rows],
            next_page_token=page.next_page_token,
        )

    async def work(self) -> None:
        """Do everything that is due, in batches."""
        while rows := await self._claim():
            try:
                results = await self._deleted([row for row, moment in rows if moment is None])
            except (DomainError, grpc.aio.AioRpcError) as error:
                message, why = f"the catalogue does not answer: {error}", pb.DELETION_REASON_CATALOG
                results = [_Result(row, State.STATE_WAITING, message, why) for row, at in rows if at is None]
            later = pb.DELETION_REASON_RATE
            await self._settle(
                [*results, *(_Result(row, State.STATE_WAITING, "", later, at) for row, at in rows if at is not None)]
            )

    async def _claim(self) -> Sequence[tuple[Row[Any], datetime | None]]:
        """Take what is due, each with the moment at which its StorageElement takes it if that is still to come."""
        now = datetime.now(UTC)
        due = (
            select(deletion.c.uid)
            .where(deletion.c.state == State.STATE_WAITING, deletion.c.next_attempt_time <= now, not_far_ahead(now))
            .order_by(deletion.c.next_attempt_time)
            .limit(_BATCH)
        )
        async with self._database.read() as connection:
            if (await connection.execute(due.limit(1))).first() is None:
                return []
        await self._policies.ensure_rows()
        rates = {name: policy.deletions_per_second for name, policy in (await self._policies.all()).items()}
        async with self._database.write() as connection:
            rows = await claim(connection, deletion, due, owner=self._owner, now=now, until=now + self._lease)
            moments = await spread(connection, rows, rates, now)
            # From here on bytes may be gone, also if this process dies: such a deletion is not taken back.
            begun = in_values(deletion.c.uid, [row.uid for row in rows if row.uid not in moments])
            await connection.execute(update(deletion).where(begun).values(attempts=deletion.c.attempts + 1))
        return [(row, moments.get(row.uid)) for row in rows]

    async def _deleted(self, rows: Sequence[Row[Any]]) -> list[_Result]:
        """Ask once more whether the files are to go: an undo may be on its way to us. Then delete and confirm."""
        if not rows:
            return []
        found = await self._catalog.files([f"files/{row.file_uid}" for row in rows])
        needed = await self._needed(rows, found)
        judged = [
            _kept(row, needed[row.uid]) if row.uid in needed else _judged(row, result)
            for row, result in zip(rows, found, strict=True)
        ]
        results = await self._without_bytes([result.row for result in judged if result.state == State.STATE_CONFIRMED])
        # Confirmed before, by a process that died before it could write that down.
        known = {result.file.uid for result in found if result.file.state != file_pb2.File.STATE_DELETED}
        confirmed = [result.row for result in results if result.state == State.STATE_CONFIRMED]
        await self._confirm([row for row in confirmed if row.file_uid in known])
        return [*results, *(result for result in judged if result.state != State.STATE_CONFIRMED)]

    async def _needed(self, rows: Sequence[Row[Any]], found: Sequence[catalog_pb.FileResult]) -> dict[str, str]:
        """Return why single replicas are kept: wanted by a rule by now, the last good ones, or just being copied."""
        keys = {row.uid: ReplicaKey(row.file_uid, row.storage_element) for row in rows if row.single}
        if not keys:
            return {}
        files = {result.file.uid: result.file for result in found if result.file.state == file_pb2.File.STATE_ACTIVE}
        active = {uid: key for uid, key in keys.items() if key.file_uid in files}
        async with self._database.read() as connection:
            refused = await objections(connection, list(active.values()), files)
            arriving = await _arriving(connection, [row for row in rows if row.uid in active])
        # One that is not in the catalogue any more was deleted by a process that died before it could say so.
        stay = {key: error.message for key, error in refused.items() if not isinstance(error, NoReplica)}
        return arriving | {uid: stay[key] for uid, key in active.items() if key in stay}

    async def _without_bytes(self, rows: Sequence[Row[Any]]) -> list[_Result]:
        """Delete the bytes, StorageElement by StorageElement."""
        elements = await self._elements.all()
        results: list[_Result] = []
        by_element: dict[str, list[Row[Any]]] = {}
        for row in rows:
            element = elements.get(row.storage_element)
            if element is None:
                message, why = f"there is no StorageElement {row.storage_element}", pb.DELETION_REASON_CONFIGURATION
                results.append(_Result(row, State.STATE_WAITING, message, why))
            elif element.read_only:
                # Adopted where it lies: only forgotten.
                results.append(_Result(row, State.STATE_CONFIRMED))
            else:
                by_element.setdefault(element.id, []).append(row)
        for name, some in by_element.items():
            results.extend(await self._deleted_from(elements[name], some))
        return results

    async def _deleted_from(self, element: Element, rows: Sequence[Row[Any]]) -> list[_Result]:
        ours, others = await self._apart(element, rows)
        found = await erased(self._protocols, element, [row.path for row in ours]) if ours else []
        # Now the bytes of another file: only forgotten.
        return [_Result(row, State.STATE_CONFIRMED) for row in others] + [
            _Result(row, State.STATE_WAITING, left.message, left.reason)
            if left
            else _Result(row, State.STATE_CONFIRMED)
            for row, left in zip(ours, found, strict=True)
        ]

    async def _apart(self, element: Element, rows: Sequence[Row[Any]]) -> tuple[list[Row[Any]], list[Row[Any]]]:
        """Tell replicas of which nobody uses the bytes from those whose path another file has, or is about to take.

        The catalogue is asked: its events may come late. What it is about to be told of is asked for first.
        """
        paths = list({row.path for row in rows})
        async with self._database.read() as connection:
            taken = await coming(connection, element.id, paths)
        users: dict[str, set[str]] = {}
        for file in await self._catalog.at_paths(element.id, paths):
            users.setdefault(file.replica.path, set()).add(file.uid)
        ours, others = list[Row[Any]](), list[Row[Any]]()
        for row in rows:
            shared = row.path in taken or users.get(row.path, set()) - {row.file_uid}
            (others if shared else ours).append(row)
        return ours, others

    async def _confirm(self, rows: Sequence[Row[Any]]) -> None:
        updates: dict[str, catalog_pb.ReplicaUpdate] = {}
        for row in rows:
            name = f"files/{row.file_uid}"
            updates.setdefault(name, catalog_pb.ReplicaUpdate(name=name)).remove.append(row.storage_element)
        if updates:
            await self._catalog.update_replicas(updates.values(), str(uuid4()))

    async def _settle(self, results: Iterable[_Result]) -> None:
        now = datetime.now(UTC)
        columns = {name: deletion.c[name].type for name in ("uid", "lease_epoch", *_SETTLED)}
        rows = [(one.row.uid, one.row.lease_epoch, *self._settled(one, now)) for one in results]
        async with self._database.write() as connection:
            new = rows_table(connection, columns, rows)
            statement = (
                update(deletion)
                .where(deletion.c.uid == new.c.uid, deletion.c.lease_epoch == new.c.lease_epoch)
                .values({name: new.c[name] for name in _SETTLED} | {"lease_owner": None, "lease_expire_time": None})
                .returning(deletion)
            )
            changed = (await connection.execute(statement)).all()
            events = [deletion_event(mapping(row)) for row in changed]
            await self._log.append(connection, events)

    def _settled(self, one: _Result, now: datetime) -> tuple[Any, ...]:
        """Return the new values of the columns `_SETTLED`."""
        attempts = one.row.attempts + (1 if one.at is None else 0)
        again = one.at or now + pause(one.reason, one.row.attempts, self._pause)
        return one.state, one.reason, one.message, attempts, again, None if one.state == State.STATE_WAITING else now


def deletion_proto(row: Mapping[str, Any]) -> pb.Deletion:
    """Return a deletion as callers see it."""
    message = pb.Deletion(
        name=f"deletions/{row['uid']}",
        file=row["file"],
        file_uid=row["file_uid"],
        storage_element=row["storage_element"],
        path=row["path"],
        state=row["state"],
        message=row["message"],
        attempts=row["attempts"],
        reason=row.get("reason", pb.DELETION_REASON_UNSPECIFIED),
    )
    message.create_time.FromDatetime(row["create_time"])
    if row["state"] == State.STATE_WAITING:
        message.next_attempt_time.FromDatetime(row["next_attempt_time"])
    if row["end_time"] is not None:
        message.end_time.FromDatetime(row["end_time"])
    return message


def deletion_event(row: Mapping[str, Any]) -> NewEvent:
    """Tell how a deletion is now; its cause is the file."""
    message = deletion_proto(row)
    return NewEvent("storage.deletion.changed", message.name, row["uid"], row["file_uid"], message)


def _rows(file: file_pb2.File) -> list[dict[str, Any]]:
    return [
        {
            "uid": "",
            "file": file.name,
            "file_uid": file.uid,
            "storage_element": replica.storage_element,
            "path": replica.path,
            "state": State.STATE_WAITING,
            "reason": pb.DELETION_REASON_UNDO_WINDOW,
            "message": "",
            "attempts": 0,
            "next_attempt_time": file.deletion.purge_time.ToDatetime(UTC),
            "create_time": datetime.now(UTC),
            "end_time": None,
        }
        for replica in file.replicas
    ]


async def _arriving(connection: AsyncConnection, rows: Sequence[Row[Any]]) -> dict[str, str]:
    """Return, by deletion, which transfer brings a copy there.

    A transfer runs before it asks for deletions, and a deletion waits before it asks for transfers: one of both sees
    the other one. A deletion that was begun before is gone on with, and the transfer waits.
    """
    new = {(row.file_uid, row.storage_element): row.uid for row in rows if not row.attempts}
    query = select(transfer).where(
        in_values(transfer.c.file, {row.file for row in rows}), transfer.c.state == pb.Transfer.STATE_RUNNING
    )
    found = {(row.file_uid, row.destination): row.uid for row in (await connection.execute(query)).all()}
    return {uid: f"transfers/{found[pair]} brings a copy there." for pair, uid in new.items() if pair in found}


def _kept(row: Row[Any], why: str) -> _Result:
    return _Result(row, State.STATE_UNDONE, why, pb.DELETION_REASON_PROTECTED)


def _judged(row: Row[Any], result: catalog_pb.FileResult) -> _Result:
    """Return what the catalogue says of a deletion now: UNDONE, not yet, or (as CONFIRMED) to be done."""
    file = result.file
    if result.HasField("error"):
        message = f"the catalogue does not know the file: {result.error.message}"
        return _Result(row, State.STATE_WAITING, message, pb.DELETION_REASON_CATALOG)
    if (file.state == file_pb2.File.STATE_ACTIVE) is not row.single:
        # An undone deletion of the file; or the whole file is to go now, which is planned apart.
        return _Result(row, State.STATE_UNDONE)
    if row.single:
        return _Result(row, State.STATE_CONFIRMED)
    if file.deletion.purge_time.ToDatetime(UTC) > datetime.now(UTC):
        at = file.deletion.purge_time.ToDatetime(UTC)
        return _Result(row, State.STATE_WAITING, "", pb.DELETION_REASON_UNDO_WINDOW, at)
    return _Result(row, State.STATE_CONFIRMED)
