"""What the catalogue has where, kept by its events: for space accounting, and to delete nothing that is in use."""

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.catalog.v1 import file_pb2
from khomas.kit.database import in_values, insert_many
from khomas.storage.tables import replica, space


async def note(connection: AsyncConnection, files: Mapping[str, file_pb2.File]) -> None:
    """Take over the replicas of files, by uid, as they are now."""
    of_files = in_values(replica.c.file_uid, list(files))
    before = (await connection.execute(select(replica).where(of_files))).all()
    rows = [_row(file, one) for file in files.values() for one in _present(file)]
    if before:
        await connection.execute(delete(replica).where(of_files))
    await insert_many(connection, replica, rows)
    changes: dict[str, list[int]] = {}
    for row in before:
        _count(changes, row.storage_element, -row.size_bytes, -1)
    for new in rows:
        _count(changes, new["storage_element"], new["size_bytes"], 1)
    await _add(connection, changes)


async def forget_all(connection: AsyncConnection) -> None:
    """Begin anew: everything is going to be listed again."""
    await connection.execute(delete(replica))
    await connection.execute(delete(space))


async def shared_paths(connection: AsyncConnection, wanted: Collection[tuple[str, str, str]]) -> set[tuple[str, str]]:
    """Return those (StorageElement, path) pairs that a file other than the given one has a replica at, too."""
    ours = {(element, path): file_uid for file_uid, element, path in wanted}
    query = select(replica).where(in_values(replica.c.path, [path for _, path in ours]))
    rows = (await connection.execute(query)).all()
    return {
        (row.storage_element, row.path)
        for row in rows
        if ours.get((row.storage_element, row.path), row.file_uid) != row.file_uid
    }


def _present(file: file_pb2.File) -> Sequence[file_pb2.Replica]:
    return () if file.state == file_pb2.File.STATE_DELETED else file.replicas


def _row(file: file_pb2.File, one: file_pb2.Replica) -> dict[str, Any]:
    return {
        "file_uid": file.uid,
        "storage_element": one.storage_element,
        "path": one.path,
        "size_bytes": file.size_bytes,
        "state": one.state or file_pb2.Replica.STATE_AVAILABLE,
        # What was just committed says nothing: it was verified a moment ago.
        "verify_time": one.verify_time.ToDatetime(UTC) if one.HasField("verify_time") else datetime.now(UTC),
    }


def _count(changes: dict[str, list[int]], element: str, size_bytes: int, files: int) -> None:
    change = changes.setdefault(element, [0, 0])
    change[0] += size_bytes
    change[1] += files


async def _add(connection: AsyncConnection, changes: Mapping[str, Sequence[int]]) -> None:
    rows = [
        {"storage_element": element, "used_bytes": size_bytes, "file_count": files}
        for element, (size_bytes, files) in sorted(changes.items())
        if size_bytes or files
    ]
    if not rows:
        return
    insert = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(space)
    added = {name: space.c[name] + insert.excluded[name] for name in ("used_bytes", "file_count")}
    await connection.execute(insert.on_conflict_do_update(index_elements=["storage_element"], set_=added), rows)
