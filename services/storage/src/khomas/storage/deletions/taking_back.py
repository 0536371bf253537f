"""Deletions of single replicas that are not wanted any more.

They are taken back only while nobody has begun with them: later the bytes may be gone, whatever the catalogue says.
"""

from collections.abc import Collection
from datetime import UTC, datetime

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.storage.v1 import transfer_pb2 as pb
from khomas.kit.database import in_values
from khomas.kit.events import EventLog
from khomas.storage.deletions.deletions import deletion_event
from khomas.storage.rows import mappings
from khomas.storage.tables import deletion

# A file and a StorageElement.
Pair = tuple[str, str]
_WAITING = pb.Deletion.STATE_WAITING
is_doubtful = deletion.c.single & (deletion.c.state != pb.Deletion.STATE_UNDONE)


async def take_back(connection: AsyncConnection, log: EventLog, message: str, *which: ColumnElement[bool]) -> None:
    """Take back those of the deletions of single replicas that nobody has begun."""
    waiting = (deletion.c.single, deletion.c.state == _WAITING)
    untouched = (deletion.c.attempts == 0, deletion.c.lease_owner.is_(None))
    undone = {"state": pb.Deletion.STATE_UNDONE, "message": message, "end_time": datetime.now(UTC)}
    statement = update(deletion).where(*which, *waiting, *untouched).values(undone).returning(deletion)
    await log.append(connection, [deletion_event(row) for row in mappings(await connection.execute(statement))])


async def doubtful(connection: AsyncConnection, pairs: Collection[Pair]) -> set[Pair]:
    """Return the replicas that a deletion of them alone is about to take, or has taken ever.

    Of these nobody can tell whether they are there who has asked the catalogue before.
    """
    query = select(deletion.c.file_uid, deletion.c.storage_element).where(*of(pairs), is_doubtful)
    return {(row.file_uid, row.storage_element) for row in (await connection.execute(query)).all()}


async def leaving(connection: AsyncConnection, file_uids: Collection[str]) -> set[Pair]:
    """Return the single replicas of files that are about to be deleted."""
    query = select(deletion.c.file_uid, deletion.c.storage_element).where(
        in_values(deletion.c.file_uid, file_uids), deletion.c.single, deletion.c.state == _WAITING
    )
    return {(row.file_uid, row.storage_element) for row in (await connection.execute(query)).all()}


def of(pairs: Collection[Pair]) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """Say that a deletion is of one of these replicas; the first condition finds rows by their index."""
    keys = [f"{file_uid}/{element}" for file_uid, element in pairs]
    files = in_values(deletion.c.file_uid, {file_uid for file_uid, _ in pairs})
    return files, in_values(deletion.c.file_uid + "/" + deletion.c.storage_element, keys)
