"""The tables of links, beside those of the service."""

from sqlalchemy import BigInteger, Column, Double, Integer, String, Table

from khomas.kit.database import KeyText, UtcTime
from khomas.storage.tables import metadata

# How many streams a link may carry now, and what is being measured to decide about that.
link = Table(
    "link",
    metadata,
    Column("source", KeyText, primary_key=True),
    Column("destination", KeyText, primary_key=True),
    Column("streams", Integer, nullable=False),
    # By how many it has just grown; below 0: for so many windows it has not.
    Column("step", Integer, nullable=False),
    # Bytes a second before that.
    Column("rate_before", Double, nullable=False),
    Column("window_start", UtcTime, nullable=False),
    Column("window_bytes", BigInteger, nullable=False),
    Column("window_files", Integer, nullable=False),
    Column("window_errors", Integer, nullable=False),
    # When attempts were counted the last time.
    Column("count_time", UtcTime, nullable=False),
    Column("message", String, nullable=False),
    Column("error_time", UtcTime, nullable=True),
    Column("arrive_time", UtcTime, nullable=True),
)
# What was measured, by the hour; old hours go.
link_hour = Table(
    "link_hour",
    metadata,
    Column("source", KeyText, primary_key=True),
    Column("destination", KeyText, primary_key=True),
    Column("hour", UtcTime, primary_key=True),
    Column("bytes", BigInteger, nullable=False),
    Column("files", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
    # Of all streams together, and while there was any.
    Column("stream_seconds", Double, nullable=False),
    Column("busy_seconds", Double, nullable=False),
)
link_limit = Table(
    "link_limit",
    metadata,
    Column("source", KeyText, primary_key=True),
    Column("destination", KeyText, primary_key=True),
    Column("max_streams", Integer, nullable=False),
    Column("max_rate", BigInteger, nullable=False),
)
# How far the turns of a lane are, and those of each share and priority in it.
turn = Table(
    "transfer_turn",
    metadata,
    Column("lane", KeyText, primary_key=True),
    Column("share", KeyText, primary_key=True),
    Column("turn", Double, nullable=False),
)
