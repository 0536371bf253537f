"""Takes the files of one origin out of the catalogue, as if they had never been there."""

from datetime import UTC, datetime

from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.catalog.v1.file_pb2 import File
from khomas.catalog.details import file_proto
from khomas.catalog.membership import Candidate, Membership
from khomas.catalog.tables import ACTIVE, dataset, dataset_file, file, parent, replica
from khomas.kit.events import EventLog, NewEvent


async def take_back(
    connection: AsyncConnection, membership: Membership, events: EventLog, origin: str
) -> tuple[str, str] | None:
    """Make the files tombstones at once, or return a file and what was made from it, changing nothing."""
    ids = select(file.c.id).where(file.c.origin == origin, ACTIVE)
    child, wanted = file.alias(), file.alias()
    used = (
        select(wanted.c.name, child.c.name.label("child"))
        .select_from(parent)
        .join(wanted, wanted.c.id == parent.c.parent_id)
        .join(child, child.c.id == parent.c.child_id)
        .where(parent.c.parent_id.in_(ids), child.c.state == File.STATE_ACTIVE, child.c.origin != origin)
        .limit(1)
    )
    if row := (await connection.execute(used)).first():
        return row.name, row.child
    await _leave_datasets(connection, membership, origin)
    await connection.execute(delete(replica).where(replica.c.file_id.in_(ids)))
    now = datetime.now(UTC)
    taking = (
        update(file)
        .values(state=File.STATE_DELETED, update_time=now, version=file.c.version + 1)
        .where(file.c.origin == origin, ACTIVE)
        .returning(*file.c)
    )
    rows = (await connection.execute(taking)).all()
    gone = [file_proto(row) for row in rows]
    await events.append(connection, [NewEvent("catalog.file.deleted", one.name, one.uid, origin, one) for one in gone])
    return None


async def _leave_datasets(connection: AsyncConnection, membership: Membership, origin: str) -> None:
    query = (
        select(dataset.c.name, file.c.name.label("file"), file.c.id, file.c.size_bytes)
        .select_from(dataset_file)
        .join(dataset, dataset.c.id == dataset_file.c.dataset_id)
        .join(file, file.c.id == dataset_file.c.file_id)
        .where(file.c.origin == origin, ACTIVE, dataset_file.c.remove_time.is_(None))
    )
    members: dict[str, dict[str, Candidate]] = {}
    for row in await connection.execute(query):
        members.setdefault(row.name, {})[row.file] = Candidate(row.id, row.size_bytes, inside=True)
    for row in await membership.locked(connection, sorted(members)) if members else []:
        await membership.change(connection, row, remove=members[row.name])
