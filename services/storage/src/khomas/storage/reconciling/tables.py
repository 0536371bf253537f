"""Tables of comparisons, incidents, care and probes, in the schema of the storage."""

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Double,
    Index,
    Integer,
    String,
    Table,
    literal_column,
)

from khomas.kit.database import KeyText, UtcTime
from khomas.kit.leases import lease_columns
from khomas.storage.tables import metadata

FINDINGS: Final = ("lost", "dark", "size_differs", "checksum_differs", "unreadable")

reconciliation = Table(
    "reconciliation",
    metadata,
    Column("uid", KeyText, primary_key=True),
    Column("storage_element", KeyText, nullable=False),
    Column("mode", Integer, nullable=False),
    Column("grace_seconds", Double, nullable=False),
    Column("max_lost_percent", Double, nullable=False),
    Column("origin", String, nullable=False),
    Column("owner", String, nullable=False),
    Column("state", Integer, nullable=False),
    Column("phase", Integer, nullable=False),
    # How far the phase is: the last path that is done.
    Column("position", String, nullable=False),
    Column("message", String, nullable=False),
    Column("expected_files", BigInteger, nullable=False),
    Column("found_files", BigInteger, nullable=False),
    Column("found_bytes", BigInteger, nullable=False),
    Column("verified_files", BigInteger, nullable=False),
    Column("unusable_names", BigInteger, nullable=False),
    *(Column(name, BigInteger, nullable=False) for name in FINDINGS),
    Column("release_note", String, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_attempt_time", UtcTime, nullable=False),
    *lease_columns(),
    Column("create_time", UtcTime, nullable=False),
    # Since when it is in its state; NULL where that was before this was kept.
    Column("state_time", UtcTime, nullable=True),
    Column("end_time", UtcTime, nullable=True),
    Index("reconciliation_queue", "state", "next_attempt_time"),
    Index("reconciliation_of_element", "storage_element", "create_time"),
)

# One at a time for a StorageElement. The numbers are those of WAITING, RUNNING and HELD.
_UNFINISHED: Final[ColumnElement[bool]] = literal_column("state IN (1, 2, 3)")
Index(
    "reconciliation_unfinished",
    reconciliation.c.storage_element,
    unique=True,
    sqlite_where=_UNFINISHED,
    postgresql_where=_UNFINISHED,
)

# Both sides of comparisons under way. They are compared by the database, so that no side has to fit into memory.
expected_replica = Table(
    "expected_replica",
    metadata,
    Column("run_uid", KeyText, primary_key=True),
    Column("file_uid", KeyText, primary_key=True),
    Column("path", KeyText, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("adler32", String, nullable=False),
    Index("expected_replica_path", "run_uid", "path"),
)
found_file = Table(
    "found_file",
    metadata,
    Column("run_uid", KeyText, primary_key=True),
    Column("path", KeyText, primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("modify_time", UtcTime, nullable=True),
)

incident = Table(
    "incident",
    metadata,
    Column("uid", KeyText, primary_key=True),
    # StorageElement and path, as long as nothing else may be opened for them; then NULL.
    Column("open_key", KeyText, nullable=True, unique=True),
    Column("storage_element", KeyText, nullable=False),
    Column("path", KeyText, nullable=False),
    Column("kind", Integer, nullable=False),
    Column("state", Integer, nullable=False),
    Column("file", KeyText, nullable=False),
    Column("file_uid", KeyText, nullable=False),
    Column("expected_size_bytes", BigInteger, nullable=False),
    Column("found_size_bytes", BigInteger, nullable=False),
    Column("expected_adler32", String, nullable=False),
    Column("found_adler32", String, nullable=False),
    Column("found_modify_time", UtcTime, nullable=True),
    Column("proposed_repair", Integer, nullable=False),
    Column("repair", Integer, nullable=False),
    Column("requester", String, nullable=False),
    Column("reason", String, nullable=False),
    Column("message", String, nullable=False),
    Column("transfer", String, nullable=False),
    Column("quarantine_path", String, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_attempt_time", UtcTime, nullable=False),
    *lease_columns(),
    Column("origin", String, nullable=False),
    Column("create_time", UtcTime, nullable=False),
    Column("seen_time", UtcTime, nullable=False),
    Column("end_time", UtcTime, nullable=True),
    Index("incident_queue", "state", "next_attempt_time"),
    Index("incident_of_element", "storage_element", "state", "create_time"),
    Index("incident_of_file", "file_uid"),
)

# How each StorageElement is looked after. NULL is the default of the settings.
care = Table(
    "care",
    metadata,
    Column("storage_element", KeyText, primary_key=True),
    Column("verify_period_seconds", Double, nullable=True),
    Column("verify_bytes_per_second", BigInteger, nullable=True),
    Column("reconcile_interval_seconds", Double, nullable=True),
    Column("max_lost_percent", Double, nullable=True),
    Column("repair_automatically", Boolean, nullable=True),
    Column("deletions_per_second", Double, nullable=True),
    Column("probe_interval_seconds", Double, nullable=True),
    # Until when the deletions that were begun count, see `rates`.
    Column("deletions_until", UtcTime, nullable=True),
    # When the next batch is read again, and the next comparison begins.
    Column("verify_next", UtcTime, nullable=True),
    Column("reconcile_next", UtcTime, nullable=True),
)

# The newest probe of a StorageElement (source = destination) or of the way between two.
probe = Table(
    "probe",
    metadata,
    Column("source", KeyText, primary_key=True),
    Column("destination", KeyText, primary_key=True),
    Column("time", UtcTime, nullable=True),
    Column("failed_step", String, nullable=False),
    Column("message", String, nullable=False),
    Column("elapsed_seconds", Double, nullable=False),
    Column("bytes_per_second", Double, nullable=False),
    # "1" for each that went well, "0" for each that did not, the newest last.
    Column("recent", String, nullable=False),
    Column("success_time", UtcTime, nullable=True),
    Column("failures", Integer, nullable=False),
    Column("next_time", UtcTime, nullable=False),
)

LEASED: Final = (reconciliation, incident)
