"""The tables. States are stored as the numbers of their enums in the contract."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)

from khomas.kit.database import KeyText, RowId, UtcTime
from khomas.kit.events import cursor_table, event_table
from khomas.kit.idempotency import answer_table

metadata = MetaData()
answer = answer_table(metadata)
event = event_table(metadata)
event_cursor = cursor_table(metadata)

production = Table(
    "production",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("uid", KeyText, nullable=False, unique=True),
    Column("name", KeyText, nullable=False, unique=True),
    Column("description", String, nullable=False),
    Column("tags", JSON, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("owner", KeyText, nullable=False),
    Column("state", Integer, nullable=False, index=True),
    Column("message", String, nullable=False),
    Column("create_time", UtcTime, nullable=False),
    Column("update_time", UtcTime, nullable=False),
    Column("end_time", UtcTime),
    Column("version", Integer, nullable=False),
    # Its jobs are still to be cancelled.
    Column("cancelling", Boolean, nullable=False),
)

stage = Table(
    "stage",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("production_id", BigInteger, ForeignKey("production.id"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("name", KeyText, nullable=False),
    # The Stage as it was asked for, serialized.
    Column("wanted", LargeBinary, nullable=False),
    Column("complete", Boolean, nullable=False),
    # How far the files that were there before have been looked at: a Listing.
    Column("listing", Integer, nullable=False),
    # Incomplete groups are submitted, and what is there is all.
    Column("flushed", Boolean, nullable=False),
    Column("input_files", BigInteger, nullable=False),
    Column("jobs_total", BigInteger, nullable=False),
    Column("jobs_succeeded", BigInteger, nullable=False),
    Column("jobs_failed", BigInteger, nullable=False),
    # Outcomes of the last jobs, the newest at the end: "1" for one that failed, else "0".
    Column("outcomes", String, nullable=False),
    UniqueConstraint("production_id", "name"),
)

cell = Table(
    "cell",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("stage_id", BigInteger, ForeignKey("stage.id"), nullable=False),
    Column("position", BigInteger, nullable=False),
    # Pairs of key and value, in the order of the columns.
    Column("parameters", JSON, nullable=False),
    Column("requested_events", BigInteger, nullable=False),
    Column("events_per_job", BigInteger, nullable=False),
    Column("max_jobs", BigInteger, nullable=False),
    Column("state", Integer, nullable=False),
    Column("produced_events", BigInteger, nullable=False),
    Column("lost_events", BigInteger, nullable=False),
    Column("jobs_total", BigInteger, nullable=False),
    Column("jobs_succeeded", BigInteger, nullable=False),
    Column("jobs_failed", BigInteger, nullable=False),
    UniqueConstraint("stage_id", "position"),
)

# Numbers that are given out once and never again.
allocator = Table(
    "allocator",
    metadata,
    Column("name", KeyText, primary_key=True),
    Column("next", BigInteger, nullable=False),
)

# What the scheduler is asked for, recorded before it is asked: a repeated call makes nothing twice.
submission = Table(
    "submission",
    metadata,
    Column("id", RowId, primary_key=True),
    # Origin of the array that a cell gets.
    Column("uid", KeyText, nullable=False, unique=True),
    Column("request_id", String, nullable=False),
    Column("stage_id", BigInteger, ForeignKey("stage.id"), nullable=False),
    # NULL for work items, which point here themselves.
    Column("cell_id", BigInteger, ForeignKey("cell.id")),
    Column("priority", Integer, nullable=False),
    Column("job_count", Integer, nullable=False),
    # Of the cell's jobs: number of the first one in the cell and its seed.
    Column("first_run_number", BigInteger, nullable=False),
    Column("first_seed", BigInteger, nullable=False),
    # "jobs/{uid}" of the array.
    Column("job", KeyText, nullable=False, index=True),
    Column("submitted", Boolean, nullable=False),
    Column("create_time", UtcTime, nullable=False),
    Index("submission_stage", "stage_id", "submitted"),
)

# Jobs that were counted, so that a repeated event changes nothing.
finished = Table(
    "finished",
    metadata,
    # Uid of the job, "{uid}/{index}" for a child.
    Column("job", KeyText, primary_key=True),
    Column("stage_id", BigInteger, ForeignKey("stage.id"), nullable=False),
)

# Why jobs failed, by stage and reason.
failure = Table(
    "failure",
    metadata,
    Column("stage_id", BigInteger, ForeignKey("stage.id"), primary_key=True),
    # "APP_EXIT_CODE".
    Column("reason", KeyText, primary_key=True),
    Column("job_count", BigInteger, nullable=False),
    # The last one, and what was said of it.
    Column("job", String, nullable=False),
    Column("message", String, nullable=False),
    Column("update_time", UtcTime, nullable=False),
)

# Files that a stage has been told of and not looked at yet.
arrival = Table(
    "arrival",
    metadata,
    Column("stage_id", BigInteger, ForeignKey("stage.id"), primary_key=True),
    Column("file", KeyText, primary_key=True),
    # Empty where only the name was told.
    Column("file_uid", KeyText, nullable=False),
    # It comes from a listing that applied the stage's filter.
    Column("selected", Boolean, nullable=False),
    Column("create_time", UtcTime, nullable=False),
)

work_item = Table(
    "work_item",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("uid", KeyText, nullable=False, unique=True),
    Column("stage_id", BigInteger, ForeignKey("stage.id"), nullable=False),
    Column("group_value", KeyText, nullable=False),
    Column("file_count", Integer, nullable=False),
    Column("state", Integer, nullable=False),
    Column("job", KeyText, nullable=False, index=True),
    Column("submission_id", BigInteger, ForeignKey("submission.id"), index=True),
    Column("tries", Integer, nullable=False),
    Column("message", String, nullable=False),
    Column("create_time", UtcTime, nullable=False),
    Column("update_time", UtcTime, nullable=False),
    # When its last file came.
    Column("growth_time", UtcTime, nullable=False),
    Index("work_item_stage", "stage_id", "state", "group_value"),
)

# Each file is in at most one work item of a stage.
item_file = Table(
    "item_file",
    metadata,
    Column("stage_id", BigInteger, ForeignKey("stage.id"), primary_key=True),
    Column("file_uid", KeyText, primary_key=True),
    Column("file", KeyText, nullable=False),
    Column("item_id", BigInteger, ForeignKey("work_item.id"), nullable=False, index=True),
    Index("item_file_uid", "file_uid"),
)

run = Table(
    "run",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("uid", KeyText, nullable=False, unique=True),
    Column("name", KeyText, nullable=False, unique=True),
    Column("target", KeyText, nullable=False),
    Column("period", KeyText, nullable=False),
    Column("start_time", UtcTime, index=True),
    Column("stop_time", UtcTime),
    Column("quality", Integer, nullable=False),
    Column("comment", String, nullable=False),
    # Files and attributes: a Run with only these, as JSON.
    Column("facts", JSON, nullable=False),
    # SHA-256 of the run as it was made known.
    Column("digest", String, nullable=False),
    Column("create_time", UtcTime, nullable=False),
    Column("update_time", UtcTime, nullable=False),
    Column("version", Integer, nullable=False),
)

run_file = Table(
    "run_file",
    metadata,
    Column("run_id", BigInteger, ForeignKey("run.id"), primary_key=True),
    Column("file", KeyText, primary_key=True, index=True),
)

quality_change = Table(
    "quality_change",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("run_id", BigInteger, ForeignKey("run.id"), nullable=False, index=True),
    Column("author", String, nullable=False),
    Column("time", UtcTime, nullable=False),
    Column("quality", Integer, nullable=False),
    Column("comment", String, nullable=False),
)

activity = Table(
    "activity",
    metadata,
    Column("id", RowId, primary_key=True),
    # That of the attempt, adoption, upload or release itself.
    Column("uid", KeyText, nullable=False, unique=True),
    Column("kind", KeyText, nullable=False),
    Column("description", String, nullable=False),
    Column("start_time", UtcTime),
    Column("end_time", UtcTime, index=True),
    Column("agent", KeyText, nullable=False),
    Column("origin", KeyText, nullable=False, index=True),
    # "jobs/…" of an attempt.
    Column("job", KeyText, nullable=False, index=True),
    Column("native_id", KeyText, nullable=False, index=True),
    Column("attributes", JSON, nullable=False),
    Column("cpu_microseconds", BigInteger, nullable=False),
)

used = Table(
    "used",
    metadata,
    Column("activity_id", BigInteger, ForeignKey("activity.id"), primary_key=True),
    Column("file", KeyText, primary_key=True),
    Index("used_file", "file"),
)

generated = Table(
    "generated",
    metadata,
    Column("activity_id", BigInteger, ForeignKey("activity.id"), primary_key=True),
    Column("file", KeyText, primary_key=True),
    Index("generated_file", "file"),
)

# Releases whose products are still to be asked for.
pending_release = Table(
    "pending_release",
    metadata,
    Column("name", KeyText, primary_key=True),
)
