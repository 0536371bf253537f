"""Where events are kept, and how they get there."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Index,
    LargeBinary,
    MetaData,
    Table,
    Text,
    cast,
    func,
    insert,
    select,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.kit.database import RowId, UtcTime, insert_many, rows_table
from khomas.kit.ids import new_uids
from khomas.kit.telemetry.trace import current_trace_id

# An event of this kind stands for older ones that were pruned: whoever reads it has missed something.
PRUNED = ""


@dataclass(frozen=True, slots=True)
class NewEvent:
    """A change to tell the world about; the fields mean what they mean in the Event message."""

    kind: str
    subject: str
    subject_uid: str = ""
    origin: str = ""
    resource: Message | None = None
    # Empty = that of the current call.
    trace_id: str = ""


def event_table(metadata: MetaData) -> Table:
    """Declare the event log; it belongs into the service's tables.py.

    `(xid, id)` is the position. On PostgreSQL ids are given out before the commit, so a reader that remembers
    only the id loses what commits late (31 % under eight writers); the number of the transaction tells what
    may still come. On SQLite writers are one after the other and xid is always 0.
    """
    return Table(
        "event",
        metadata,
        Column("id", RowId, primary_key=True),
        Column("xid", BigInteger, nullable=False),
        Column("uid", Text, nullable=False),
        Column("kind", Text, nullable=False),
        Column("subject", Text, nullable=False),
        Column("subject_uid", Text, nullable=False),
        Column("origin", Text, nullable=False),
        Column("trace_id", Text, nullable=False),
        Column("create_time", UtcTime, nullable=False),
        Column("resource", LargeBinary, nullable=False),
        Index("event_position", "xid", "id"),
        # Ids are never used again, or a cursor could point into the past of a pruned log.
        sqlite_autoincrement=True,
    )


def xid_number(transaction: ColumnElement[object]) -> ColumnElement[int]:
    """Turn PostgreSQL's xid8 into a number."""
    return cast(cast(transaction, Text), BigInteger)


async def append(connection: AsyncConnection, table: Table, events: Sequence[NewEvent]) -> None:
    """Add events to the transaction, with one statement."""
    now, trace_id = datetime.now(UTC), current_trace_id()
    uids = new_uids(len(events))
    rows = [
        {
            "uid": uid,
            "kind": event.kind,
            "subject": event.subject,
            "subject_uid": event.subject_uid,
            "origin": event.origin,
            "trace_id": event.trace_id or trace_id,
            "create_time": now,
            "resource": _packed(event.resource),
        }
        for uid, event in zip(uids, events, strict=True)
    ]
    if connection.dialect.name == "sqlite":
        await insert_many(connection, table, [{**row, "xid": 0} for row in rows])
        return
    types = {key: table.c[key].type for key in rows[0]}
    source = rows_table(connection, types, [tuple(row.values()) for row in rows])
    xid = xid_number(func.pg_current_xact_id())
    await connection.execute(insert(table).from_select([*types, "xid"], select(*source.c, xid)))


def _packed(resource: Message | None) -> bytes:
    packed = AnyMessage()
    if resource is not None:
        packed.Pack(resource)
    return packed.SerializeToString()
