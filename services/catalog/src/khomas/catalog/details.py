"""From rows to messages: two statements for any number of files, straight from what the driver gives."""

from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any

from sqlalchemy import TIMESTAMP, BigInteger, Double, Integer, literal, null, select, type_coerce, union_all
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
# In the place of the type of a value: what the row is instead.
_REPLICA, _PARENT = -1, -2
_VALUES = file_value.c
_MOMENT = BigInteger().with_variant(TIMESTAMP(timezone=True), "postgresql")


def _whole(with_replicas: bool) -> Prepared:
    """Return the query of metadata, parents and, if wanted, replicas; union is what one statement costs."""
    no_moment = null().cast(_MOMENT)
    parts = [
        select(
            *(_VALUES.file_id, metadata_key.c.type, metadata_key.c.name),
            *(_VALUES.whole, _VALUES.number, _VALUES.text, no_moment),
        )
        .join(metadata_key, metadata_key.c.id == _VALUES.key_id)
        .where(values_param(_VALUES.file_id, "ids")),
        select(
            *(parent.c.child_id, literal(_PARENT, Integer), file.c.name),
            *(null().cast(BigInteger), null().cast(Double), null().cast(_VALUES.text.type), no_moment),
        )
        .join(file, file.c.id == parent.c.parent_id)
        .where(values_param(parent.c.child_id, "children")),
    ]
    copies = select(
        *(replica.c.file_id, literal(_REPLICA, Integer), replica.c.storage_element),
        *(replica.c.state, null().cast(Double), replica.c.path, type_coerce(replica.c.verify_time, NullType)),
    ).where(values_param(replica.c.file_id, "owners"))
    return Prepared(union_all(*parts, *([copies] if with_replicas else [])))


_METADATA_AND_PARENTS, _EVERYTHING = _whole(with_replicas=False), _whole(with_replicas=True)


async def complete(connection: AsyncConnection, rows: Iterable[Sequence[Any]], view: int) -> list[File]:
    """Return files, of rows that begin with FILE, with what the view asks for; unset = everything."""
    found = {row[0]: file_proto(row) for row in rows}
    ids = list(found)
    if view == pb.FILE_VIEW_REPLICAS and found:
        for row in await _REPLICAS.rows(connection, ids=ids):
            add_replica(found[row[0]], *row[1:])
    elif view != pb.FILE_VIEW_BASIC and found:
        _add(found, await _EVERYTHING.rows(connection, ids=ids, children=ids, owners=ids))
    return list(found.values())


async def add_rest(connection: AsyncConnection, found: dict[int, File], view: int) -> None:
    """Add what the view asks for beyond replicas, to files by their ids."""
    if view in (pb.FILE_VIEW_UNSPECIFIED, pb.FILE_VIEW_FULL) and found:
        ids = list(found)
        _add(found, await _METADATA_AND_PARENTS.rows(connection, ids=ids, children=ids))


def _add(found: dict[int, File], rows: Iterable[Sequence[Any]]) -> None:
    parents: list[tuple[str, int]] = []
    copies = []
    for row in rows:
        id_, kind, name, whole, number, text, moment = row
        if kind == _PARENT:
            parents.append((name, id_))
        elif kind == _REPLICA:
            copies.append((name, id_, text, whole, moment))
        else:
            set_value(found[id_].metadata[name], kind, whole, number, text)
    for name, id_ in sorted(parents):
        found[id_].parents.append(name)
    for element, id_, path, state, moment in sorted(copies, key=itemgetter(0)):
        add_replica(found[id_], element, path, state, moment)


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
