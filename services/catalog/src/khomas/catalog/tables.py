"""The catalogue's tables. States and types are stored as the numbers of their enums in the contract."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    and_,
    literal_column,
    text,
)

from khomas.kit.database import KeyText, RowId, UidText, UtcTime
from khomas.kit.events import event_table
from khomas.kit.idempotency import answer_table

metadata = MetaData()
answer = answer_table(metadata)
event = event_table(metadata)

directory = Table(
    "directory",
    metadata,
    Column("id", RowId, primary_key=True),
    # "/" is the only one without a parent.
    Column("path", KeyText, nullable=False, unique=True),
    Column("parent_id", BigInteger, ForeignKey("directory.id"), index=True),
)

file = Table(
    "file",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("uid", UidText, nullable=False, unique=True),
    Column("name", KeyText, nullable=False),
    Column("directory_id", BigInteger, ForeignKey("directory.id"), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("adler32", String, nullable=False),
    Column("sha256", String, nullable=False),
    Column("md5", String, nullable=False),
    Column("content_digest", String, nullable=False),
    Column("origin", KeyText, nullable=False),
    Column("owner", String, nullable=False),
    Column("state", Integer, nullable=False),
    Column("create_time", UtcTime, nullable=False),
    Column("update_time", UtcTime, nullable=False),
    Column("version", Integer, nullable=False),
    Column("delete_requester", String),
    Column("delete_reason", String),
    Column("delete_time", UtcTime),
    Column("purge_time", UtcTime),
    # A tombstone frees its name.
    Index("file_name", "name", unique=True, sqlite_where=text("state < 3"), postgresql_where=text("state < 3")),
    Index("file_directory", "directory_id", "name"),
    Index("file_origin", "origin", sqlite_where=text("origin != ''"), postgresql_where=text("origin != ''")),
    Index("file_purge", "purge_time", sqlite_where=text("state = 2"), postgresql_where=text("state = 2")),
)

# The numbers of the states stand in the SQL itself: a plan that PostgreSQL prepared for any parameter cannot see
# that the partial indexes above serve it, and reads the whole table (0.4 s a call at 40,000 files). SQLite takes the
# index on names only where its condition stands as it is, hence both in one.
NOT_DELETED = file.c.state < literal_column("3")
ACTIVE = and_(NOT_DELETED, file.c.state == literal_column("1"))
DELETING = and_(NOT_DELETED, file.c.state == literal_column("2"))

replica = Table(
    "replica",
    metadata,
    Column("file_id", BigInteger, ForeignKey("file.id"), primary_key=True),
    Column("storage_element", KeyText, primary_key=True),
    # NULL where it is the LFN without its first slash, which is the usual case.
    Column("path", KeyText),
    Column("state", Integer, nullable=False),
    Column("verify_time", UtcTime),
    Index("replica_storage_element", "storage_element", "file_id"),
    Index("replica_path", "path", sqlite_where=text("path IS NOT NULL"), postgresql_where=text("path IS NOT NULL")),
)

metadata_key = Table(
    "metadata_key",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("name", KeyText, nullable=False, unique=True),
    Column("type", Integer, nullable=False),
    Column("unit", String, nullable=False),
    Column("description", String, nullable=False),
    Column("create_time", UtcTime, nullable=False),
)


def _value_table(name: str, owner: str) -> Table:
    """Declare a table of typed values: one of the three columns is set, by the type of the key."""
    table = Table(
        name,
        metadata,
        Column(f"{owner}_id", BigInteger, ForeignKey(f"{owner}.id"), primary_key=True),
        Column("key_id", BigInteger, ForeignKey("metadata_key.id"), primary_key=True),
        # INTEGER, BOOLEAN, and TIME in microseconds since 1970.
        Column("whole", BigInteger),
        Column("number", Double),
        Column("text", KeyText),
    )
    for column in ("whole", "number", "text"):
        there = text(f"{column} IS NOT NULL")
        Index(f"{name}_{column}", table.c.key_id, table.c[column], sqlite_where=there, postgresql_where=there)
    return table


file_value = _value_table("file_value", "file")

parent = Table(
    "parent",
    metadata,
    Column("child_id", BigInteger, ForeignKey("file.id"), primary_key=True),
    Column("parent_id", BigInteger, ForeignKey("file.id"), primary_key=True, index=True),
)

dataset = Table(
    "dataset",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("uid", KeyText, nullable=False, unique=True),
    Column("name", KeyText, nullable=False, unique=True),
    Column("description", String, nullable=False),
    Column("origin", KeyText, nullable=False),
    Column("owner", String, nullable=False),
    Column("state", Integer, nullable=False),
    Column("file_count", BigInteger, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("create_time", UtcTime, nullable=False),
    Column("update_time", UtcTime, nullable=False),
    Column("close_time", UtcTime),
    Column("version", Integer, nullable=False),
)
dataset_value = _value_table("dataset_value", "dataset")

# Membership with its history; remove_time is NULL while it lasts.
dataset_file = Table(
    "dataset_file",
    metadata,
    Column("dataset_id", BigInteger, ForeignKey("dataset.id"), primary_key=True),
    Column("file_id", BigInteger, ForeignKey("file.id"), primary_key=True),
    Column("add_time", UtcTime, primary_key=True),
    Column("remove_time", UtcTime),
    Index("dataset_file_file", "file_id"),
)

adoption = Table(
    "adoption",
    metadata,
    Column("uid", KeyText, primary_key=True),
    # The Adoption as it was asked for, serialized.
    Column("wanted", LargeBinary, nullable=False),
    Column("owner", String, nullable=False),
    Column("state", Integer, nullable=False),
    # Everything up to this path is in the catalogue.
    Column("after_path", String, nullable=False),
    Column("adopted_files", BigInteger, nullable=False),
    Column("adopted_bytes", BigInteger, nullable=False),
    Column("known_files", BigInteger, nullable=False),
    Column("problems", JSON, nullable=False),
    # Why it waits or has failed, an AdoptionReason, and since when.
    Column("reason", Integer, nullable=False, server_default="0"),
    Column("reason_message", String, nullable=False, server_default=""),
    Column("reason_time", UtcTime),
    Column("create_time", UtcTime, nullable=False),
    Column("end_time", UtcTime),
)
