"""Deletions of single replicas: planned here, done with all others."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.catalog.v1 import file_pb2
from khomas.api.storage.v1 import transfer_pb2 as pb
from khomas.kit.database import insert_many
from khomas.kit.errors import DomainError
from khomas.kit.events import EventLog
from khomas.kit.ids import new_uids
from khomas.storage.deletions.deletions import deletion_event
from khomas.storage.deletions.taking_back import leaving
from khomas.storage.rules.protection import ReplicaKey, decide_alone, objections
from khomas.storage.tables import deletion


async def remove(
    connection: AsyncConnection, log: EventLog, keys: Sequence[ReplicaKey], files: Mapping[str, file_pb2.File]
) -> dict[ReplicaKey, DomainError]:
    """Plan the deletion of replicas; return, for those that must stay, why. `files` are fresh from the catalogue.

    What is planned already is not planned twice: the second deletion would take what was copied there after the first.
    """
    await decide_alone(connection)
    before = await leaving(connection, {key.file_uid for key in keys})
    refused = await objections(connection, keys, files)
    removed = [
        key for key in dict.fromkeys(keys) if key not in refused and (key.file_uid, key.storage_element) not in before
    ]
    rows = [
        _row(uid, key, files[key.file_uid])
        for uid, key in zip(new_uids(len(removed)) if removed else (), removed, strict=True)
    ]
    await insert_many(connection, deletion, rows)
    await log.append(connection, [deletion_event(row) for row in rows])
    return refused


def _row(uid: str, key: ReplicaKey, file: file_pb2.File) -> dict[str, Any]:
    now = datetime.now(UTC)
    path = next(replica.path for replica in file.replicas if replica.storage_element == key.storage_element)
    return {
        "uid": uid,
        "file": file.name,
        "file_uid": file.uid,
        "storage_element": key.storage_element,
        "path": path,
        "state": pb.Deletion.STATE_WAITING,
        "message": "",
        "attempts": 0,
        "next_attempt_time": now,
        "create_time": now,
        "end_time": None,
        "single": True,
    }
