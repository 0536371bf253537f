"""From rows to messages: two statements for any number of files, straight from what the driver gives."""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import BigInteger, Double, Integer, null, select, type_coerce, union_all
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import NullType

from khomas.api.catalog.v1 import catalog_service_pb2 as pb
from khomas.api.catalog.v1.file_pb2 import Deletion, File
from khomas.api.common.v1.checksum_pb2 import Checksums
from khomas.catalog.names import default_path
from khomas.catalog.tables import file, file_value, metadata_key, parent, replica
from khomas.catalog.values import set_value, timestamp_of
from khomas.kit.database import Prepared, UtcTime, values_param

# The columns that `file_proto` reads, in its order; moments as they are stored, which saves 3 us a file.
FILE = tuple(
    type_coerce(column, NullType).label(column.key) if isinstance(column.type, UtcTime) else column for column in file.c
)
# What `add_replica` reads, in its order.
REPLICA = (
    *(replica.c.storage_element, replica.c.path, replica.c.state),
    type_coerce(replica.c.verify_time, NullType).label("verify_time"),
)

_REPLICAS = Prepared(
    select(replica.c.file_id, *REPLICA)
    .where(values_param(replica.c.file_id, "ids"))
    .order_by(replica.c.file_id, replica.c.storage_element)
)
_VALUES = file_value.c
_METADATA_AND_PARENTS = Prepared(
    union_all(
        select(
            *(_VALUES.file_id, metadata_key.c.name, metadata_key.c.type),
            *(_VALUES.whole, _VALUES.number, _VALUES.text),
        )
        .join(metadata_key, metadata_key.c.id == _VALUES.key_id)
        .where(values_param(_VALUES.file_id, "ids")),
        select(
            *(parent.c.child_id, file.c.name, null().cast(Integer)),
            *(null().cast(BigInteger), null().cast(Double), null().cast(_VALUES.text.type)),
        )
        .join(file, file.c.id == parent.c.parent_id)
        .where(values_param(parent.c.child_id, "children")),
    )
)


async def complete(connection: AsyncConnection, rows: Iterable[Sequence[Any]], view: int) -> list[File]:
    """Return files, of rows that begin with FILE, with what the view asks for; unset = everything."""
    found = {row[0]: file_proto(row) for row in rows}
    if view != pb.FILE_VIEW_BASIC and found:
        for row in await _REPLICAS.rows(connection, ids=list(found)):
            add_replica(found[row[0]], *row[1:])
    await add_rest(connection, found, view)
    return list(found.values())


async def add_rest(connection: AsyncConnection, found: dict[int, File], view: int) -> None:
    """Add what the view asks for beyond replicas, to files by their ids."""
    if view in (pb.FILE_VIEW_UNSPECIFIED, pb.FILE_VIEW_FULL) and found:
        ids = list(found)
        parents: dict[int, list[str]] = {}
        for id_, name, type_, whole, number, text in await _METADATA_AND_PARENTS.rows(
            connection, ids=ids, children=ids
        ):
            if type_ is None:
                parents.setdefault(id_, []).append(name)
            else:
                set_value(found[id_].metadata[name], type_, whole, number, text)
        for id_, names in parents.items():
            found[id_].parents.extend(sorted(names))


def add_replica(one: File, storage_element: str, path: str | None, state: Any, verify_time: Any) -> None:
    """Add a replica to its file."""
    one.replicas.add(
        storage_element=storage_element,
        path=default_path(one.name) if path is None else path,
        state=state,
        verify_time=None if verify_time is None else timestamp_of(verify_time),
    )
    if one.state == File.STATE_DELETING:
        one.deletion.remaining_replicas += 1


def file_proto(row: Sequence[Any]) -> File:
    """Return a row that begins with FILE as a message with the BASIC fields."""
    message = File(
        name=row[2],
        size_bytes=row[4],
        checksums=Checksums(adler32=row[5], sha256=row[6], md5=row[7], content_digest=row[8]),
        origin=row[9],
        uid=row[1],
        state=row[11],
        create_time=timestamp_of(row[12]),
        update_time=timestamp_of(row[13]),
        owner=row[10],
        etag=str(row[14]),
    )
    if row[17] is not None:
        message.deletion.CopyFrom(
            Deletion(
                requester=row[15],
                reason=row[16],
                request_time=timestamp_of(row[17]),
                purge_time=timestamp_of(row[18]),
            )
        )
    return message
