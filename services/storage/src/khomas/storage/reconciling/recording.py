"""Keeps incidents: one open one for a path, however often it is found."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.catalog.v1 import file_pb2
from khomas.api.storage.v1 import incident_pb2 as pb
from khomas.kit.database import Database, in_values, insert_new, rows_table
from khomas.kit.events import EventLog, NewEvent
from khomas.kit.ids import new_uids
from khomas.storage.catalog import Catalog
from khomas.storage.elements.elements import Element, Elements
from khomas.storage.reconciling.findings import Finding, row_of, suspect
from khomas.storage.reconciling.policies import Policies
from khomas.storage.reconciling.tables import incident
from khomas.storage.rows import mapping, mappings

PREFIX = "incidents/"
State = pb.Incident.State
_NEVER = datetime.min.replace(tzinfo=UTC)
_SEEN = ("seen_time", "origin", "kind", "found_size_bytes", "found_adler32", "found_modify_time", "message")


class Recording:
    """Writes down what was found, and sees to it that nobody is sent to a replica that is not right."""

    def __init__(
        self, database: Database, log: EventLog, catalog: Catalog, elements: Elements, policies: Policies
    ) -> None:
        self._database = database
        self._log = log
        self._catalog = catalog
        self._elements = elements
        self._policies = policies

    async def record(self, element: Element, findings: Sequence[Finding], origin: str) -> None:
        """Open incidents for findings, or note that they are still so; their replicas are SUSPECT then."""
        if not findings:
            return
        policy = (await self._policies.all())[element.id]
        now = datetime.now(UTC)
        rows = [row_of(one, element, origin=origin, automatic=policy.repair_automatically, now=now) for one in findings]
        async with self._database.write() as connection:
            await self._write(connection, rows, seen=True)
        await self._suspect(element, findings)

    async def suspects(self, connection: AsyncConnection, files: Iterable[file_pb2.File]) -> None:
        """Open incidents for replicas that somebody else made SUSPECT."""
        found = [
            (one, Finding(replica.path, pb.Incident.KIND_SUSPECT, one), replica.storage_element)
            for one in files
            if one.state == file_pb2.File.STATE_ACTIVE
            for replica in one.replicas
            if replica.state == file_pb2.Replica.STATE_SUSPECT
        ]
        if not found:
            return
        over = await _ended_times(connection, [one.uid for one, _, _ in found])
        elements, policies, now = await self._elements.all(), await self._policies.all(), datetime.now(UTC)
        rows = [
            row_of(finding, elements[name], origin="catalog", automatic=policies[name].repair_automatically, now=now)
            for one, finding, name in found
            # News of before a repair may come after it.
            if name in elements and one.update_time.ToDatetime(UTC) > over.get((one.uid, name), _NEVER)
        ]
        await self._write(connection, rows, seen=False)

    async def _write(self, connection: AsyncConnection, rows: Sequence[dict[str, Any]], *, seen: bool) -> None:
        if not rows:
            return
        for row, uid in zip(rows, new_uids(len(rows)), strict=True):
            row["uid"] = uid
        new = await insert_new(connection, incident, rows, *incident.c)
        if seen and len(new) < len(rows):
            await self._seen_again(connection, rows, {row.open_key for row in new})
        await self._log.append(connection, [incident_event(mapping(row)) for row in new])

    async def _seen_again(self, connection: AsyncConnection, rows: Sequence[Mapping[str, Any]], new: set[str]) -> None:
        columns = {name: incident.c[name].type for name in ("open_key", *_SEEN)}
        again = [[row[name] for name in columns] for row in rows if row["open_key"] not in new]
        found = rows_table(connection, columns, again)
        await connection.execute(
            update(incident)
            # Under repair, the bad bytes may lie beside the good ones for a moment: that is nothing new.
            .where(incident.c.open_key == found.c.open_key, incident.c.state != State.STATE_REPAIRING)
            .values({name: found.c[name] for name in _SEEN})
        )

    async def _suspect(self, element: Element, findings: Sequence[Finding]) -> None:
        updates = [
            catalog_pb.ReplicaUpdate(name=f"files/{one.file.uid}", set=[replica])
            for one in findings
            if one.file is not None
            and one.kind != pb.Incident.KIND_DARK
            and (replica := suspect(one.file, element.id)) is not None
        ]
        await self._catalog.note_replicas(updates)

    async def outdated(self, element: str, kinds: Sequence[int], seen_before: datetime) -> None:
        """End those that were not seen any more: known files are verified first, of others there is nothing left."""
        table = incident.c
        gone = (
            table.storage_element == element,
            table.kind.in_(kinds),
            table.state.in_((State.STATE_OPEN, State.STATE_DISMISSED)),
            table.open_key.is_not(None),
            table.seen_time < seen_before,
        )
        now = datetime.now(UTC)
        verify = {
            "state": State.STATE_REPAIRING,
            "repair": pb.REPAIR_VERIFY,
            "requester": "policy",
            "next_attempt_time": now,
            "message": "A later comparison did not find it.",
        }
        async with self._database.write() as connection:
            changed = [
                *await _changed(connection, *gone, table.kind == pb.Incident.KIND_DARK, **ended("It is not there.")),
                *await _changed(connection, *gone, table.kind != pb.Incident.KIND_DARK, **verify),
            ]
            await self._log.append(connection, [incident_event(row) for row in changed])


async def _ended_times(connection: AsyncConnection, uids: Sequence[str]) -> dict[tuple[str, str], datetime]:
    """Return when the last incidents of files were over, by file and StorageElement."""
    columns = (incident.c.file_uid, incident.c.storage_element)
    query = (
        select(*columns, func.max(incident.c.end_time).label("end_time"))
        .where(in_values(incident.c.file_uid, uids), incident.c.end_time.is_not(None))
        .group_by(*columns)
    )
    rows = (await connection.execute(query)).all()
    return {(row.file_uid, row.storage_element): row.end_time for row in rows}


async def _changed(connection: AsyncConnection, *where: Any, **values: Any) -> Sequence[Mapping[str, Any]]:
    uids = (await connection.scalars(select(incident.c.uid).where(*where))).all()
    if not uids:
        return []
    statement = update(incident).where(in_values(incident.c.uid, uids)).values(**values).returning(incident)
    return mappings(await connection.execute(statement))


def ended(message: str) -> dict[str, Any]:
    """Return what makes an incident RESOLVED."""
    return {
        "state": State.STATE_RESOLVED,
        "open_key": None,
        "message": message,
        "end_time": datetime.now(UTC),
        "lease_owner": None,
        "lease_expire_time": None,
    }


def incident_proto(row: Mapping[str, Any]) -> pb.Incident:
    """Return an incident as callers see it."""
    message = pb.Incident(
        name=PREFIX + row["uid"],
        **{
            name: row[name]
            for name in (
                *("storage_element", "path", "kind", "state", "file", "file_uid"),
                *("expected_size_bytes", "found_size_bytes", "expected_adler32", "found_adler32"),
                *("proposed_repair", "repair", "requester", "reason", "message", "transfer", "quarantine_path"),
                *("attempts", "origin"),
            )
        },
    )
    message.create_time.FromDatetime(row["create_time"])
    message.seen_time.FromDatetime(row["seen_time"])
    if row["state"] == State.STATE_REPAIRING:
        message.next_attempt_time.FromDatetime(row["next_attempt_time"])
    if row["end_time"] is not None:
        message.end_time.FromDatetime(row["end_time"])
    return message


def incident_event(row: Mapping[str, Any]) -> NewEvent:
    """Tell how an incident is now; its cause is the file."""
    message = incident_proto(row)
    return NewEvent("storage.incident.changed", message.name, row["uid"], row["file_uid"], message)
