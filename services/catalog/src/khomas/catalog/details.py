"""From rows to messages: one statement a table for any number of files."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.catalog.v1 import catalog_service_pb2 as pb
from khomas.api.catalog.v1.file_pb2 import Deletion, File, Replica
from khomas.api.common.v1.checksum_pb2 import Checksums
from khomas.catalog.names import default_path
from khomas.catalog.tables import file, file_value, metadata_key, parent, replica
from khomas.catalog.values import value_of
from khomas.kit.database import AnyRow, in_values


async def complete(connection: AsyncConnection, rows: Sequence[AnyRow], view: int) -> list[File]:
    """Return files with what the view asks for; unset = everything."""
    found = {row.id: file_proto(row) for row in rows}
    if view != pb.FILE_VIEW_BASIC and found:
        await _add_replicas(connection, found)
    if view in (pb.FILE_VIEW_UNSPECIFIED, pb.FILE_VIEW_FULL) and found:
        await _add_metadata(connection, found)
        await _add_parents(connection, found)
    return list(found.values())


async def _add_replicas(connection: AsyncConnection, found: dict[int, File]) -> None:
    query = select(replica).where(in_values(replica.c.file_id, found.keys())).order_by(replica.c.storage_element)
    for row in await connection.execute(query):
        one = found[row.file_id]
        one.replicas.append(
            Replica(
                storage_element=row.storage_element,
                path=default_path(one.name) if row.path is None else row.path,
                state=row.state,
                verify_time=row.verify_time,
            )
        )
    for one in found.values():
        if one.state == File.STATE_DELETING:
            one.deletion.remaining_replicas = len(one.replicas)


async def _add_metadata(connection: AsyncConnection, found: dict[int, File]) -> None:
    values = file_value.c
    query = (
        select(values.file_id, metadata_key.c.name, metadata_key.c.type, values.whole, values.number, values.text)
        .join(metadata_key, metadata_key.c.id == values.key_id)
        .where(in_values(values.file_id, found.keys()))
    )
    for row in await connection.execute(query):
        found[row.file_id].metadata[row.name].CopyFrom(value_of(row.type, row.whole, row.number, row.text))


async def _add_parents(connection: AsyncConnection, found: dict[int, File]) -> None:
    query = (
        select(parent.c.child_id, file.c.name)
        .join(file, file.c.id == parent.c.parent_id)
        .where(in_values(parent.c.child_id, found.keys()))
        .order_by(file.c.name)
    )
    for row in await connection.execute(query):
        found[row.child_id].parents.append(row.name)


def file_proto(row: Any) -> File:
    """Return a row of the table as a message with the BASIC fields."""
    message = File(
        name=row.name,
        size_bytes=row.size_bytes,
        checksums=Checksums(adler32=row.adler32, sha256=row.sha256, md5=row.md5, content_digest=row.content_digest),
        origin=row.origin,
        uid=row.uid,
        state=row.state,
        create_time=row.create_time,
        update_time=row.update_time,
        owner=row.owner,
        etag=str(row.version),
    )
    if row.delete_time is not None:
        message.deletion.CopyFrom(
            Deletion(
                requester=row.delete_requester,
                reason=row.delete_reason,
                request_time=row.delete_time,
                purge_time=row.purge_time,
            )
        )
    return message
