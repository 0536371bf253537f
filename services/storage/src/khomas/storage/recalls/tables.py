"""The tables of recalls, beside those of the service."""

from sqlalchemy import BigInteger, Boolean, Column, Double, Index, Integer, String, Table

from khomas.kit.database import KeyText, UtcTime
from khomas.kit.leases import lease_columns
from khomas.storage.tables import metadata

recall = Table(
    "recall",
    metadata,
    Column("uid", KeyText, primary_key=True),
    # "storage element/uid of the file" while it is not final: there is one of them only.
    Column("active_key", KeyText, nullable=True, unique=True),
    Column("file", KeyText, nullable=False, index=True),
    Column("file_uid", KeyText, nullable=False),
    Column("storage_element", KeyText, nullable=False),
    Column("path", String, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("state", Integer, nullable=False),
    Column("reason", Integer, nullable=False),
    Column("message", String, nullable=False),
    # Uid of the row of recall_request; noted before the tape system is asked, so that a lost answer is looked for.
    Column("request_uid", KeyText, nullable=False),
    Column("native_id", KeyText, nullable=False),
    # What a tape system is still to be told about a final one: "cancel", "release".
    Column("owed", String, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("queue_position", BigInteger, nullable=False),
    Column("position_estimated", Boolean, nullable=False),
    Column("pin_seconds", Double, nullable=False),
    Column("pin_time", UtcTime, nullable=True),
    # When it is looked at next; NULL = never again.
    Column("due_time", UtcTime, nullable=True),
    Column("origin", String, nullable=False),
    Column("owner", String, nullable=False),
    *lease_columns(),
    Column("create_time", UtcTime, nullable=False),
    Column("state_time", UtcTime, nullable=False),
    Column("end_time", UtcTime, nullable=True),
    Index("recall_due", "due_time"),
    Index("recall_by_element", "storage_element", "state", "state_time"),
)

# One bulk request to a tape system.
recall_request = Table(
    "recall_request",
    metadata,
    Column("uid", KeyText, primary_key=True),
    Column("storage_element", KeyText, nullable=False),
    Column("files", Integer, nullable=False),
    # Empty = no answer yet.
    Column("native_id", KeyText, nullable=False),
    Column("create_time", UtcTime, nullable=False, index=True),
)
