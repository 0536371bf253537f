"""From rows to messages: two statements for any number of files, straight from what the driver gives."""

from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Any

from sqlalchemy import TIMESTAMP, BigInteger, Double, Integer, literal, null, select, type_coerce, union_all
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import NullType

from khomas.api.catalog.v1 import catalog_service_pb2 as pb
from khomas.api.catalog.v1.file_pb2 import File
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


async def complete(
    connection: AsyncConnection, rows: Iterable[Sequence[Any]], view: int, new: Callable[[], File] = File
) -> list[File]:
    """Return files, of rows that begin with FILE, with what the view asks for; unset = everything.

    `new` makes the messages: those of an answer need not be copied into it.
    """
    found = {row[0]: file_proto(row, new()) for row in rows}
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
    copy = one.replicas.add()
    copy.storage_element = storage_element
    copy.path = default_path(one.name) if path is None else path
    copy.state = state
    if verify_time is not None:
        copy.verify_time.CopyFrom(timestamp_of(verify_time))
    if one.state == File.STATE_DELETING:
        one.deletion.remaining_replicas += 1


def file_proto(row: Sequence[Any], message: File | None = None) -> File:
    """Write a row that begins with FILE into a new message: the BASIC fields.

    Fields set one by one take half the time of those given to the constructor.
    """
    message = File() if message is None else message
    message.uid = row[1]
    message.name = row[2]
    message.size_bytes = row[4]
    checksums = message.checksums
    checksums.adler32 = row[5]
    if row[6]:
        checksums.sha256 = row[6]
    if row[7]:
        checksums.md5 = row[7]
    if row[8]:
        checksums.content_digest = row[8]
    message.origin = row[9]
    message.owner = row[10]
    message.state = row[11]
    message.create_time.CopyFrom(timestamp_of(row[12]))
    message.update_time.CopyFrom(timestamp_of(row[13]))
    message.etag = str(row[14])
    if row[17] is not None:
        deletion = message.deletion
        deletion.requester = row[15]
        deletion.reason = row[16]
        deletion.request_time.CopyFrom(timestamp_of(row[17]))
        deletion.purge_time.CopyFrom(timestamp_of(row[18]))
    return message
