"""Incidents as callers see them, and the repairs that they accept."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.common.v1 import explanation_pb2
from khomas.api.storage.v1 import incident_pb2 as pb
from khomas.api.storage.v1 import integrity_service_pb2 as service_pb
from khomas.kit.boundary.call import current_principal
from khomas.kit.database import Database, in_values, rows_table
from khomas.kit.errors import FieldInvalid
from khomas.kit.events import EventLog
from khomas.kit.filtering import fields, where
from khomas.kit.idempotency import Once
from khomas.kit.paging import Ordering, list_page
from khomas.storage.reconciling.errors import IncidentNotFound, RepairUnfit
from khomas.storage.reconciling.explaining import explanation
from khomas.storage.reconciling.findings import ASIDE, fits
from khomas.storage.reconciling.recording import PREFIX, incident_event, incident_proto
from khomas.storage.reconciling.tables import incident
from khomas.storage.rows import mapping, mappings

State = pb.Incident.State
_FIELDS = {
    "uid": fields.text(incident.c.uid),
    "kind": fields.enum(incident.c.kind, pb.Incident.Kind),
    "state": fields.enum(incident.c.state, State),
    "storage_element": fields.text(incident.c.storage_element),
    "path": fields.text(incident.c.path),
    "file": fields.text(incident.c.file),
    "proposed_repair": fields.enum(incident.c.proposed_repair, pb.Repair),
    "repair": fields.enum(incident.c.repair, pb.Repair),
    "quarantine_path": fields.text(incident.c.quarantine_path),
    "origin": fields.text(incident.c.origin),
    "create_time": fields.time(incident.c.create_time),
    "seen_time": fields.time(incident.c.seen_time),
    "end_time": fields.time(incident.c.end_time),
}
_ORDER = Ordering({"create_time": incident.c.create_time, "path": incident.c.path}, incident.c.uid, "create_time desc")
_CHUNK: Final = 5000
_DECIDED = ("uid", "state", "repair")


class Incidents:
    """Reads incidents, and takes decisions about them."""

    def __init__(self, database: Database, once: Once, log: EventLog) -> None:
        self._database = database
        self._once = once
        self._log = log

    async def get(self, name: str) -> pb.Incident:
        """Read one."""
        return incident_proto(await self._read(name))

    async def explain(self, name: str) -> explanation_pb2.Explanation:
        """Tell what is wrong with one, and who can do what."""
        row = await self._read(name)
        return explanation(incident_proto(row))

    async def page(self, request: service_pb.ListIncidentsRequest) -> service_pb.ListIncidentsResponse:
        """Read a page."""
        query = select(incident).where(where(request.filter, _FIELDS))
        async with self._database.read() as connection:
            page = await list_page(connection, query, request, _ORDER)
        return service_pb.ListIncidentsResponse(
            incidents=[incident_proto(mapping(row)) for row in page.rows], next_page_token=page.next_page_token
        )

    async def apply(self, request: service_pb.ApplyRepairsRequest) -> service_pb.ApplyRepairsResponse:
        """Accept repairs; the work is done by `repairing`."""
        if bool(request.names) == bool(request.filter):
            raise FieldInvalid.of("names", "give either names or a filter")
        uids = {name.removeprefix(PREFIX) for name in request.names}
        which = in_values(incident.c.uid, uids) if uids else where(request.filter, _FIELDS)

        async def work(connection: AsyncConnection) -> service_pb.ApplyRepairsResponse:
            if uids:
                await self._check_named(connection, uids, request.repair)
            rows = (await connection.execute(_chosen(which, request.repair))).all()
            accepted = [_accepted(row, request.repair) for row in rows]
            if not request.validate_only:
                await self._accept(connection, accepted, request.reason)
            decided = len(uids) - len(rows) if uids else 0
            return service_pb.ApplyRepairsResponse(accepted=len(accepted), already_decided=decided)

        return await self._once(request, service_pb.ApplyRepairsResponse, work)

    async def _check_named(self, connection: AsyncConnection, uids: set[str], repair: pb.Repair.ValueType) -> None:
        columns = (incident.c.uid, incident.c.kind, incident.c.state)
        rows = (await connection.execute(select(*columns).where(in_values(incident.c.uid, uids)))).all()
        if missing := uids - {row.uid for row in rows}:
            raise IncidentNotFound(name=PREFIX + min(missing))
        for row in rows:
            if repair in ASIDE and row.state in (State.STATE_OPEN, State.STATE_DISMISSED):
                raise _unfit(row.uid, row.kind, repair)

    async def _accept(self, connection: AsyncConnection, accepted: Sequence[Sequence[Any]], reason: str) -> None:
        now = datetime.now(UTC)
        values = {"requester": current_principal().subject, "reason": reason, "attempts": 0, "next_attempt_time": now}
        types = {name: incident.c[name].type for name in _DECIDED}
        for start in range(0, len(accepted), _CHUNK):
            new = rows_table(connection, types, accepted[start : start + _CHUNK])
            statement = (
                update(incident)
                .where(incident.c.uid == new.c.uid)
                .values(state=new.c.state, repair=new.c.repair, **values)
                .returning(incident)
            )
            rows = mappings(await connection.execute(statement))
            await self._log.append(connection, [incident_event(row) for row in rows])

    async def _read(self, name: str) -> Mapping[str, Any]:
        query = select(incident).where(incident.c.uid == name.removeprefix(PREFIX))
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        if row is None:
            raise IncidentNotFound(name=name)
        return mapping(row)


def _chosen(which: ColumnElement[bool], repair: pb.Repair.ValueType) -> Any:
    columns = (incident.c.uid, incident.c.kind, incident.c.proposed_repair)
    aside = (incident.c.state == State.STATE_RESOLVED, incident.c.quarantine_path != "")
    ready = aside if repair in ASIDE else (incident.c.state == State.STATE_OPEN,)
    return select(*columns).where(which, *ready).with_for_update()


def _accepted(row: Row[Any], wanted: pb.Repair.ValueType) -> tuple[str, int, int]:
    """Return uid, new state and repair; raise RepairUnfit."""
    repair = wanted or pb.Repair.ValueType(row.proposed_repair)
    if not repair or not fits(repair, row.kind):
        raise _unfit(row.uid, row.kind, repair)
    state = State.STATE_DISMISSED if repair == pb.REPAIR_DISMISS else State.STATE_REPAIRING
    return row.uid, state, repair


def _unfit(uid: str, kind: pb.Incident.Kind.ValueType, repair: pb.Repair.ValueType) -> RepairUnfit:
    said, word = pb.Incident.Kind.Name(kind), pb.Repair.Name(repair)
    return RepairUnfit(name=PREFIX + uid, repair=word.removeprefix("REPAIR_"), kind=said.removeprefix("KIND_"))
