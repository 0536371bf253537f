"""Comparisons as they stand in the database: asked for, claimed, gone on with, ended."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Select, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.common.v1 import explanation_pb2
from khomas.api.storage.v1 import incident_pb2, storage_element_pb2
from khomas.api.storage.v1 import integrity_service_pb2 as service_pb
from khomas.api.storage.v1 import reconciliation_pb2 as pb
from khomas.kit.boundary.call import current_principal
from khomas.kit.database import Database, insert_new
from khomas.kit.errors import FieldInvalid
from khomas.kit.events import EventLog, NewEvent
from khomas.kit.filtering import fields, where
from khomas.kit.idempotency import Once
from khomas.kit.ids import new_uid
from khomas.kit.leases import FREE
from khomas.kit.paging import Ordering, list_page
from khomas.storage.elements.elements import Elements, known
from khomas.storage.reconciling.errors import ReconciliationNotFound, ReconciliationState
from khomas.storage.reconciling.run_reasons import explanation
from khomas.storage.reconciling.tables import FINDINGS, incident, reconciliation
from khomas.storage.rows import mapping, mappings

PREFIX = "reconciliations/"
State = pb.Reconciliation.State
Kind = incident_pb2.Incident.Kind
GOING = (State.STATE_WAITING, State.STATE_RUNNING)
UNFINISHED = (*GOING, State.STATE_HELD)
_KINDS: Mapping[str, int] = {
    "lost": incident_pb2.Incident.KIND_LOST,
    "dark": incident_pb2.Incident.KIND_DARK,
    "size_differs": incident_pb2.Incident.KIND_SIZE,
    "checksum_differs": incident_pb2.Incident.KIND_CHECKSUM,
    "unreadable": incident_pb2.Incident.KIND_UNREADABLE,
}
_FIELDS = {
    "state": fields.enum(reconciliation.c.state, State),
    "storage_element": fields.text(reconciliation.c.storage_element),
    "create_time": fields.time(reconciliation.c.create_time),
}
_ORDER = Ordering({"create_time": reconciliation.c.create_time}, reconciliation.c.uid, "create_time desc")
_COUNTS = ("expected_files", "found_files", "found_bytes", "verified_files", "unusable_names")


class Runs:
    """Takes wishes for comparisons and tells what became of them."""

    def __init__(self, database: Database, once: Once, log: EventLog, elements: Elements, grace: timedelta) -> None:
        self._database = database
        self._once = once
        self._log = log
        self._elements = elements
        self._grace = grace

    async def create(self, request: service_pb.CreateReconciliationRequest) -> pb.Reconciliation:
        """Queue one."""
        wanted = request.reconciliation
        element = known(await self._elements.all(), wanted.storage_element)
        if element.media == storage_element_pb2.StorageElement.MEDIA_TAPE and wanted.mode == wanted.MODE_FULL:
            raise FieldInvalid.of("reconciliation.mode", "FULL would recall every file from tape; take CHECKSUM")
        grace = wanted.grace.ToTimedelta() if wanted.HasField("grace") else self._grace
        if grace < timedelta(0):
            raise FieldInvalid.of("reconciliation.grace", "no time is negative")
        row = new_row(element.id, wanted.mode, grace, current_principal().subject, wanted)

        async def work(connection: AsyncConnection) -> pb.Reconciliation:
            # The one that is there may end before it is read: then this one is tried again.
            while not await begun(connection, self._log, row):
                if (other := await _unfinished(connection, element.id)) is not None:
                    state = State.Name(State.ValueType(other.state)).removeprefix("STATE_")
                    raise ReconciliationState(name=PREFIX + other.uid, state=state)
            return run_proto(row)

        return await self._once(request, pb.Reconciliation, work)

    async def get(self, name: str) -> pb.Reconciliation:
        """Read one."""
        async with self._database.read() as connection:
            return run_proto(await _row(connection, name))

    async def explain(self, name: str) -> explanation_pb2.Explanation:
        """Say why one waits, is held or failed."""
        async with self._database.read() as connection:
            row = await _row(connection, name)
            earlier = reconciliation.c.next_attempt_time < row["next_attempt_time"]
            queue = select(func.count()).where(reconciliation.c.state.in_(GOING), earlier)
            before = await connection.scalar(queue)
        return explanation(run_proto(row), row, before or 0)

    async def page(self, request: service_pb.ListReconciliationsRequest) -> service_pb.ListReconciliationsResponse:
        """Read a page."""
        query = select(reconciliation).where(where(request.filter, _FIELDS))
        async with self._database.read() as connection:
            page = await list_page(connection, query, request, _ORDER)
        return service_pb.ListReconciliationsResponse(
            reconciliations=[run_proto(mapping(row)) for row in page.rows], next_page_token=page.next_page_token
        )

    async def release(self, request: service_pb.ReleaseReconciliationRequest) -> pb.Reconciliation:
        """Let one that is held go on."""
        note = f"{current_principal().subject}: {request.reason}"
        now = datetime.now(UTC)
        values = {
            "state": State.STATE_WAITING,
            "phase": pb.Reconciliation.PHASE_COMPARISON,
            "message": "",
            "release_note": note,
            "next_attempt_time": now,
            "state_time": now,
        }

        async def work(connection: AsyncConnection) -> pb.Reconciliation:
            return await self._changed(connection, request.name, (State.STATE_HELD,), values)

        return await self._once(request, pb.Reconciliation, work)

    async def cancel(self, request: service_pb.CancelReconciliationRequest) -> pb.Reconciliation:
        """Take one back; whoever works on it loses it."""
        now = datetime.now(UTC)
        values = {
            "state": State.STATE_CANCELLED,
            "state_time": now,
            "end_time": now,
            **FREE,
            "lease_epoch": reconciliation.c.lease_epoch + 1,
        }

        async def work(connection: AsyncConnection) -> pb.Reconciliation:
            row = await _row(connection, request.name)
            if row["state"] not in UNFINISHED:
                return run_proto(row)
            return await self._changed(connection, request.name, UNFINISHED, values)

        return await self._once(request, pb.Reconciliation, work)

    async def _changed(
        self, connection: AsyncConnection, name: str, states: tuple[int, ...], values: Mapping[str, Any]
    ) -> pb.Reconciliation:
        statement = (
            update(reconciliation)
            .where(reconciliation.c.uid == name.removeprefix(PREFIX), reconciliation.c.state.in_(states))
            .values(**values)
            .returning(reconciliation)
        )
        rows = mappings(await connection.execute(statement))
        if not rows:
            row = await _row(connection, name)
            raise ReconciliationState(name=name, state=State.Name(row["state"]).removeprefix("STATE_"))
        await self._log.append(connection, [run_event(row) for row in rows])
        return run_proto(rows[0])


async def begun(connection: AsyncConnection, log: EventLog, row: Mapping[str, Any]) -> bool:
    """Insert a comparison, unless its StorageElement has one that is not over yet; tell which it was."""
    made = await insert_new(connection, reconciliation, [row], reconciliation.c.uid)
    await log.append(connection, [run_event(row)] if made else [])
    return bool(made)


async def _unfinished(connection: AsyncConnection, element: str) -> Any:
    """Return the comparison of a StorageElement that is not over yet."""
    query = select(reconciliation).where(
        reconciliation.c.storage_element == element, reconciliation.c.state.in_(UNFINISHED)
    )
    return (await connection.execute(query.limit(1))).one_or_none()


def counted(run: str) -> Select[int, int]:
    """Select the kinds of incidents that a comparison has seen, with their numbers."""
    return (
        select(incident.c.kind, func.count().label("number"))
        .where(incident.c.origin == PREFIX + run)
        .group_by(incident.c.kind)
    )


def findings(kinds: Mapping[int, int]) -> dict[str, int]:
    """Return the columns for these numbers."""
    return {name: kinds.get(kind, 0) for name, kind in _KINDS.items()}


def new_row(
    element: str, mode: int, grace: timedelta, owner: str, wanted: pb.Reconciliation | None = None
) -> dict[str, Any]:
    """Return a new comparison as a row of the table."""
    now = datetime.now(UTC)
    return {
        "uid": new_uid(),
        "storage_element": element,
        "mode": mode,
        "grace_seconds": grace.total_seconds(),
        "max_lost_percent": wanted.max_lost_percent if wanted is not None else 0.0,
        "origin": wanted.origin if wanted is not None else "",
        "owner": owner,
        "state": State.STATE_WAITING,
        "phase": pb.Reconciliation.PHASE_UNSPECIFIED,
        "position": "",
        "message": "",
        **dict.fromkeys((*_COUNTS, *FINDINGS), 0),
        "release_note": "",
        "attempts": 0,
        "next_attempt_time": now,
        "create_time": now,
        "state_time": now,
        "end_time": None,
    }


def run_proto(row: Mapping[str, Any]) -> pb.Reconciliation:
    """Return a comparison as callers see it."""
    copied = ("storage_element", "mode", "max_lost_percent", "origin", "state", "phase", "message", "owner")
    message = pb.Reconciliation(
        name=PREFIX + row["uid"],
        **{name: row[name] for name in (*copied, *_COUNTS, "release_note")},
        findings=pb.Findings(**{name: row[name] for name in FINDINGS}),
    )
    message.grace.FromTimedelta(timedelta(seconds=row["grace_seconds"]))
    message.create_time.FromDatetime(row["create_time"])
    if row["end_time"] is not None:
        message.end_time.FromDatetime(row["end_time"])
    return message


def run_event(row: Mapping[str, Any]) -> NewEvent:
    """Tell how a comparison is now."""
    message = run_proto(row)
    return NewEvent("storage.reconciliation.changed", message.name, row["uid"], row["origin"], message)


async def _row(connection: AsyncConnection, name: str) -> Mapping[str, Any]:
    query = select(reconciliation).where(reconciliation.c.uid == name.removeprefix(PREFIX))
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        raise ReconciliationNotFound(name=name)
    return mapping(row)
