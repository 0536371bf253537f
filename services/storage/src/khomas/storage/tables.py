"""The storage's tables. States and reasons are stored as the numbers of their enums in the contract."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    false,
    literal_column,
)

from khomas.kit.database import KeyText, UtcTime
from khomas.kit.events import cursor_table, event_table
from khomas.kit.idempotency import answer_table
from khomas.kit.leases import lease_columns

metadata = MetaData()
answer = answer_table(metadata)
event = event_table(metadata)
cursor = cursor_table(metadata)

# One row: the key that signs grants.
secret = Table(
    "secret",
    metadata,
    Column("name", String, primary_key=True),
    Column("value", LargeBinary, nullable=False),
)

storage_element = Table(
    "storage_element",
    metadata,
    Column("id", KeyText, primary_key=True),
    Column("uid", String, nullable=False),
    Column("description", String, nullable=False),
    Column("site", String, nullable=False),
    Column("media", Integer, nullable=False),
    # [[protocol, address, credential, [[option, value], …]], …]; older rows end after the address.
    Column("access_points", JSON, nullable=False),
    Column("read_only", Boolean, nullable=False),
    Column("capacity_bytes", BigInteger, nullable=False),
    Column("create_time", UtcTime, nullable=False),
    Column("update_time", UtcTime, nullable=False),
    Column("version", Integer, nullable=False),
    # The last look at it; -1 free bytes where the storage cannot tell.
    Column("free_bytes", BigInteger, nullable=False),
    Column("reachable", Boolean, nullable=False),
    Column("message", String, nullable=False),
    Column("check_time", UtcTime, nullable=False),
    # What rules can name and weigh.
    Column("labels", JSON, nullable=False, server_default="{}"),
    Column("weight", Integer, nullable=False, server_default="0"),
    # Percent.
    Column("high_watermark", Integer, nullable=False, server_default="0"),
    Column("low_watermark", Integer, nullable=False, server_default="0"),
    Column("draining", Boolean, nullable=False, server_default=false()),
)

# What the catalogue has on each StorageElement, kept by its events.
space = Table(
    "space",
    metadata,
    Column("storage_element", KeyText, primary_key=True),
    Column("used_bytes", BigInteger, nullable=False),
    Column("file_count", BigInteger, nullable=False),
)
# How much there was, hour by hour.
space_sample = Table(
    "space_sample",
    metadata,
    Column("storage_element", KeyText, primary_key=True),
    Column("sample_time", UtcTime, primary_key=True),
    Column("used_bytes", BigInteger, nullable=False),
)
replica = Table(
    "replica",
    metadata,
    Column("file_uid", KeyText, primary_key=True),
    Column("storage_element", KeyText, primary_key=True),
    Column("path", KeyText, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("state", Integer, nullable=False, server_default="1"),
    # When its bytes were compared last; NULL where we have not heard of it yet.
    Column("verify_time", UtcTime, nullable=True),
    # The last listing of the catalogue that had begun when it was noted.
    Column("listing", BigInteger, nullable=False, server_default="0"),
    Index("replica_by_path", "storage_element", "path"),
    Index("replica_by_verify_time", "storage_element", "state", "verify_time"),
)
# One row, which the migration makes: how we stand with the catalogue.
followed = Table(
    "followed",
    metadata,
    Column("name", KeyText, primary_key=True),
    # Number of the last listing that was begun.
    Column("listing", BigInteger, nullable=False),
    # What the catalogue took in before is known here; NULL where nobody can tell.
    Column("known_time", UtcTime, nullable=True),
)

upload = Table(
    "upload",
    metadata,
    Column("uid", KeyText, primary_key=True),
    Column("storage_element", KeyText, nullable=False),
    Column("max_files", Integer, nullable=False),
    Column("reserve_bytes", BigInteger, nullable=False),
    Column("origin", String, nullable=False),
    Column("owner", String, nullable=False),
    Column("state", Integer, nullable=False),
    # The commit that has taken it; nothing more is written to it then.
    Column("commit_uid", KeyText, nullable=True, index=True),
    Column("create_time", UtcTime, nullable=False),
    Column("expire_time", UtcTime, nullable=False),
    Index("upload_by_state", "state", "expire_time"),
)
uploaded_file = Table(
    "uploaded_file",
    metadata,
    Column("upload_uid", KeyText, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("adler32", String, nullable=False),
    Column("sha256", String, nullable=False),
    Column("content_digest", String, nullable=False),
    # Identity of the file on disk that the checksums are of.
    Column("stamp", String, nullable=False),
)
# An intent to commit uploads; with an answer it is done.
upload_commit = Table(
    "upload_commit",
    metadata,
    Column("uid", KeyText, primary_key=True),
    Column("request_key", KeyText, nullable=False, unique=True),
    Column("request_digest", LargeBinary, nullable=False),
    # [[upload uid, index, storage element, path, stamp], …]
    Column("placements", JSON, nullable=False),
    Column("catalog_request", LargeBinary, nullable=False),
    # [[dataset, [LFNs]], …] that not all of the files join.
    Column("memberships", JSON, nullable=False),
    Column("answer", LargeBinary, nullable=True),
    *lease_columns(),
    Column("create_time", UtcTime, nullable=False, index=True),
)

transfer = Table(
    "transfer",
    metadata,
    Column("uid", KeyText, primary_key=True),
    Column("file", KeyText, nullable=False),
    Column("file_uid", String, nullable=False),
    Column("destination", KeyText, nullable=False),
    # Ids with commas between them; empty = any.
    Column("sources", String, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("max_attempts", Integer, nullable=False),
    Column("origin", String, nullable=False, index=True),
    Column("owner", String, nullable=False),
    Column("state", Integer, nullable=False),
    Column("reason", Integer, nullable=False),
    Column("message", String, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    # Where the copy goes, noted before it gets its name there.
    Column("path", String, nullable=False),
    Column("next_attempt_time", UtcTime, nullable=False),
    *lease_columns(),
    Column("create_time", UtcTime, nullable=False),
    Column("state_time", UtcTime, nullable=False),
    Column("end_time", UtcTime, nullable=True, index=True),
    Column("deadline", UtcTime, nullable=True),
    Column("share", String, nullable=False, server_default=""),
    # "source>destination": what it is queued for. The source is empty while none is chosen.
    Column("lane", KeyText, nullable=False, server_default=""),
    # Its place in the lane, see `turns`.
    Column("turn", Double, nullable=False, server_default="0"),
    # What is moved by one stream has one run.
    Column("run", String, nullable=False, server_default=""),
    Column("moved_bytes", BigInteger, nullable=False, server_default="0"),
    # Where another executor has it, "name:its id", and the hidden name that it writes to.
    Column("external", String, nullable=False, server_default=""),
    Column("hidden", String, nullable=False, server_default=""),
    Index("transfer_lane", "state", "reason", "lane", "turn"),
    Index("transfer_wanted", "file", "destination", "state"),
)
# Spelled out with the numbers of WAITING, RUNNING, BACKOFF and SUCCEEDED: planners take an index only for the very same
# condition. The sums keep SQLite from the index of lanes, in which it would read all that waits.
PAUSED: ColumnElement[bool] = literal_column("state + 0 = 1 AND reason + 0 = 2")
BOUND: ColumnElement[bool] = literal_column("state + 0 = 1 AND deadline IS NOT NULL")
LEFT: ColumnElement[bool] = literal_column("state + 0 > 20 AND path <> ''")
# Of each wanted copy there is one.
_WANTED: ColumnElement[bool] = literal_column("state IN (1, 2)")
Index(
    "transfer_active",
    transfer.c.file,
    transfer.c.destination,
    unique=True,
    sqlite_where=_WANTED,
    postgresql_where=_WANTED,
)
Index("transfer_left", transfer.c.end_time, sqlite_where=LEFT, postgresql_where=LEFT)
Index("transfer_deadline", transfer.c.deadline, sqlite_where=BOUND, postgresql_where=BOUND)
Index("transfer_pause", transfer.c.next_attempt_time, sqlite_where=PAUSED, postgresql_where=PAUSED)
transfer_attempt = Table(
    "transfer_attempt",
    metadata,
    Column("transfer_uid", KeyText, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("source", String, nullable=False),
    Column("reason", Integer, nullable=False),
    Column("message", String, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("start_time", UtcTime, nullable=False),
    Column("elapsed_seconds", Double, nullable=False),
    Column("queued_seconds", Double, nullable=False, server_default="0"),
    Column("bottleneck", Integer, nullable=False, server_default="0"),
    Column("streamed_bytes", BigInteger, nullable=False, server_default="0"),
    Column("executor", String, nullable=False, server_default=""),
)

deletion = Table(
    "deletion",
    metadata,
    Column("uid", KeyText, primary_key=True),
    Column("file", KeyText, nullable=False),
    Column("file_uid", KeyText, nullable=False),
    Column("storage_element", KeyText, nullable=False),
    Column("path", String, nullable=False),
    Column("state", Integer, nullable=False),
    Column("reason", Integer, nullable=False, server_default="0"),
    Column("message", String, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_attempt_time", UtcTime, nullable=False),
    *lease_columns(),
    Column("create_time", UtcTime, nullable=False),
    Column("end_time", UtcTime, nullable=True),
    # Only this replica, not the whole file.
    Column("single", Boolean, nullable=False, server_default=false()),
    Index("deletion_queue", "state", "next_attempt_time"),
    Index("deletion_of_file", "file_uid", "storage_element"),
)
