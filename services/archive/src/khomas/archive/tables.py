"""The archive's tables. States are stored as the numbers of their enum in the contract."""

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
)
from sqlalchemy.types import TypeEngine

from khomas.archive import obscore
from khomas.archive.obscore import Kind
from khomas.kit.database import KeyText, UtcTime
from khomas.kit.events import event_table
from khomas.kit.idempotency import answer_table
from khomas.kit.leases import lease_columns

metadata = MetaData()
answer = answer_table(metadata)
event = event_table(metadata)

release = Table(
    "release",
    metadata,
    Column("uid", KeyText, primary_key=True),
    Column("name", KeyText, nullable=False, unique=True),
    Column("title", String, nullable=False),
    Column("description", String, nullable=False),
    Column("dataset", KeyText, nullable=False),
    # A Mapping of the contract.
    Column("mapping", LargeBinary, nullable=False),
    Column("authority", String, nullable=False),
    Column("terms", String, nullable=False),
    Column("state", Integer, nullable=False),
    Column("problems", JSON, nullable=False),
    # What it waits for while it is prepared, or why it was withdrawn.
    Column("message", String, nullable=False),
    Column("record_count", BigInteger, nullable=False),
    Column("content_digest", String, nullable=False),
    Column("owner", KeyText, nullable=False),
    Column("origin", String, nullable=False),
    Column("version", Integer, nullable=False),
    Column("create_time", UtcTime, nullable=False, index=True),
    Column("state_time", UtcTime, nullable=False),
    Column("publish_time", UtcTime, nullable=True),
    Column("next_attempt_time", UtcTime, nullable=False),
    *lease_columns(),
    Index("release_queue", "state", "next_attempt_time"),
)

product = Table(
    "product",
    metadata,
    Column("release_uid", KeyText, primary_key=True),
    Column("source", KeyText, primary_key=True),
    Column("file", KeyText, nullable=False),
    Column("publisher_did", KeyText, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("adler32", String, nullable=False),
    Column("content_digest", String, nullable=False),
    Column("has_record", Boolean, nullable=False),
)

_TYPES: dict[Kind, type[TypeEngine[Any]]] = {
    Kind.TEXT: String,
    Kind.INTEGER: Integer,
    Kind.LONG: BigInteger,
    Kind.NUMBER: Double,
}

# ObsCore records, with the direction as a unit vector: a cone search compares declinations and dot products.
record = Table(
    "record",
    metadata,
    Column("release_uid", KeyText, primary_key=True),
    Column("obs_publisher_did", KeyText, primary_key=True),
    *(
        Column(column.name, _TYPES[column.kind], nullable=not column.required)
        for column in obscore.COLUMNS
        if column.name != "obs_publisher_did"
    ),
    Column("cx", Double, nullable=True),
    Column("cy", Double, nullable=True),
    Column("cz", Double, nullable=True),
    Index("record_by_declination", "release_uid", "s_dec"),
)

export = Table(
    "export",
    metadata,
    Column("uid", KeyText, primary_key=True),
    Column("release_uid", KeyText, nullable=False, index=True),
    Column("exporter", String, nullable=False),
    Column("files", JSON, nullable=False),
    # A Struct of the contract.
    Column("options", LargeBinary, nullable=False),
    Column("create_time", UtcTime, nullable=False),
)
