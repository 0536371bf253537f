"""Tables of the scheduler."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    literal_column,
)

from khomas.kit.database import KeyText, UtcTime
from khomas.kit.events import event_table
from khomas.kit.idempotency import answer_table

metadata = MetaData()

answer = answer_table(metadata)
event = event_table(metadata)

# What is wanted, apart from `job`: it never changes, and rows of `job` change several times in a job's life.
spec = Table(
    "spec",
    metadata,
    Column("uid", KeyText, primary_key=True),
    Column("spec", LargeBinary, nullable=False),
    # Compressed JSON: what was resolved at the submission (see frozen.py).
    Column("frozen", LargeBinary, nullable=False),
)

# Single jobs, arrays, and the children of arrays that had their turn.
job = Table(
    "job",
    metadata,
    # "{uid}", for a child "{uid of the array}/{index}".
    Column("uid", KeyText, primary_key=True),
    # Uid of the array; empty for what is no child.
    Column("parent", KeyText, nullable=False),
    Column("index", Integer, nullable=False),
    Column("spec", KeyText, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("reason", SmallInteger, nullable=False),
    Column("message", Text, nullable=False),
    Column("since", UtcTime, nullable=False),
    Column("desired", SmallInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    # Attempts that count for max_attempts.
    Column("counted", Integer, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("application_status", Text, nullable=False),
    # When the engine is to hand it over; NULL = not before something else happens.
    Column("due", UtcTime),
    Column("next_attempt_time", UtcTime),
    Column("start_after", UtcTime),
    # When it is to be given up.
    Column("deadline", UtcTime),
    # Dependencies that are not kept yet.
    Column("waits", Integer, nullable=False),
    Column("memory_factor", Float, nullable=False),
    Column("wall_factor", Float, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("owner", Text, nullable=False),
    Column("origin", Text, nullable=False),
    Column("display_name", Text, nullable=False),
    Column("tags", JSON, nullable=False),
    # Of the last attempt.
    Column("backend", Text, nullable=False),
    Column("parameters", JSON, nullable=False),
    # Uid of the array whose outputs it merges.
    Column("merges", Text, nullable=False),
    Column("create_time", UtcTime, nullable=False),
    Column("update_time", UtcTime, nullable=False),
    Column("end_time", UtcTime),
    # Of an array, else 0: its children, and how many of them have a row. The others share a state.
    Column("total", Integer, nullable=False),
    Column("made", Integer, nullable=False),
    Column("rest_state", SmallInteger, nullable=False),
    Column("rest_reason", SmallInteger, nullable=False),
    Column("max_running", Integer, nullable=False),
    # Path of the account that it is charged to.
    Column("share", Text, nullable=False, server_default=""),
    # How long it is kept after its end; NULL = as the service is set.
    Column("retain_s", BigInteger),
    # W3C trace context of the call that submitted it; "" of what nobody called for.
    Column("traceparent", Text, nullable=False, server_default=""),
    Index("job_children", "parent", "index"),
    Index("job_origin", "origin"),
)
# Lists leave the children of arrays out.
TOP = job.c.parent == literal_column("''")
# `parent` comes first although it is always the same: SQLite would rather sort all jobs that `job_children` finds.
Index("job_newest", job.c.parent, job.c.create_time, job.c.uid, sqlite_where=TOP, postgresql_where=TOP)
Index(
    "job_due",
    job.c.priority.desc(),
    job.c.due,
    sqlite_where=job.c.due.is_not(None),
    postgresql_where=job.c.due.is_not(None),
)
# What waits in each account, in its order.
Index(
    "job_share",
    job.c.share,
    job.c.priority.desc(),
    job.c.due,
    sqlite_where=job.c.due.is_not(None),
    postgresql_where=job.c.due.is_not(None),
)
# 2 is JOB_STATE_PENDING; also the state of an array some of whose children have not had their turn.
PENDING = job.c.state == literal_column("2")
Index("job_pending", job.c.share, sqlite_where=PENDING, postgresql_where=PENDING)
RETAINED = TOP & job.c.retain_s.is_not(None)
Index("job_retained", job.c.retain_s, job.c.end_time, sqlite_where=RETAINED, postgresql_where=RETAINED)
Index("job_ended", job.c.end_time, sqlite_where=TOP, postgresql_where=TOP)
Index(
    "job_deadline",
    job.c.deadline,
    sqlite_where=job.c.deadline.is_not(None),
    postgresql_where=job.c.deadline.is_not(None),
)
# 3 is DESIRED_STATE_CANCEL.
CANCELLING = (job.c.desired == literal_column("3")) & job.c.end_time.is_(None)
Index("jobCANCELLING", job.c.uid, sqlite_where=CANCELLING, postgresql_where=CANCELLING)

# Children of arrays by state, those without a row included.
count = Table(
    "job_count",
    metadata,
    Column("parent", KeyText, primary_key=True),
    Column("state", SmallInteger, primary_key=True),
    Column("reason", SmallInteger, primary_key=True),
    Column("number", Integer, nullable=False),
)

attempt = Table(
    "attempt",
    metadata,
    Column("uid", KeyText, primary_key=True),
    Column("job", KeyText, nullable=False),
    Column("number", Integer, nullable=False),
    Column("backend", Text, nullable=False),
    Column("native_id", Text, nullable=False),
    Column("queue", Text, nullable=False),
    Column("node", Text, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("reason", SmallInteger, nullable=False),
    Column("message", Text, nullable=False),
    Column("native_state", Text, nullable=False),
    Column("exit_code", Integer),
    Column("signal", Integer),
    Column("usage", JSON, nullable=False),
    # Outputs as in the contract, once committed or kept.
    Column("outputs", JSON, nullable=False),
    # The exit record, while what it lists is being committed.
    Column("record", JSON, nullable=False),
    # Name of the upload that takes the outputs.
    Column("upload", Text, nullable=False),
    Column("inputs", JSON, nullable=False),
    Column("script_sha256", Text, nullable=False),
    Column("create_time", UtcTime, nullable=False),
    Column("submit_time", UtcTime),
    Column("start_time", UtcTime),
    Column("end_time", UtcTime),
    # Whether logs and sandbox files lie in the state folder and the backend has forgotten it.
    Column("collected", Boolean, nullable=False),
    Index("attempt_job", "job", "number", unique=True),
)
Index(
    "attempt_open",
    attempt.c.uid,
    sqlite_where=attempt.c.end_time.is_(None),
    postgresql_where=attempt.c.end_time.is_(None),
)
LEFT = attempt.c.end_time.is_not(None) & literal_column("NOT collected")
Index("attempt_left", attempt.c.end_time, sqlite_where=LEFT, postgresql_where=LEFT)

dependency = Table(
    "dependency",
    metadata,
    Column("job", KeyText, primary_key=True),
    Column("target", KeyText, primary_key=True),
    Column("condition", SmallInteger, nullable=False),
    Column("min_fraction", Float, nullable=False),
    Column("kept", Boolean, nullable=False),
    Index("dependency_target", "target"),
)

# Attempts whose CPU efficiency stayed too low, while they run.
slow = Table(
    "slow",
    metadata,
    Column("attempt", KeyText, primary_key=True),
    Column("job", KeyText, nullable=False),
    Column("efficiency", Float, nullable=False),
    Column("message", Text, nullable=False),
    Column("since", UtcTime, nullable=False),
    # NULL = it is not killed.
    Column("kill_time", UtcTime),
    # Somebody answered that it is meant to be slow.
    Column("kept", Boolean, nullable=False),
    Index("slow_job", "job"),
)

# Jobs that took the place of others: what the old one's readers look for may be here.
rescue = Table(
    "rescue",
    metadata,
    Column("job", KeyText, primary_key=True),
    Column("original", KeyText, nullable=False),
    Index("rescue_original", "original"),
)

# CPU time charged to accounts, by hours since 1970.
share_use = Table(
    "share_use",
    metadata,
    Column("share", KeyText, primary_key=True),
    Column("hour", Integer, primary_key=True),
    Column("cpu_ms", BigInteger, nullable=False),
)

# Backends that were banned or drained, by people or by the service.
backend = Table(
    "backend",
    metadata,
    Column("backend", KeyText, primary_key=True),
    Column("status", SmallInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("since", UtcTime),
    Column("until", UtcTime),
    Column("bans", Integer, nullable=False),
)

# How backends did, by hours since 1970.
backend_tally = Table(
    "backend_tally",
    metadata,
    Column("backend", KeyText, primary_key=True),
    Column("hour", Integer, primary_key=True),
    Column("what", KeyText, primary_key=True),
    Column("number", BigInteger, nullable=False),
)

# What jobs of a kind used, as numbers of jobs by size (see intake/profiles.py).
usage_profile = Table(
    "usage_profile",
    metadata,
    Column("profile", KeyText, primary_key=True),
    Column("backend", KeyText, primary_key=True),
    Column("what", KeyText, primary_key=True),
    Column("bucket", Integer, primary_key=True),
    Column("number", BigInteger, nullable=False),
)

# What was said to batch systems.
command = Table(
    "command",
    metadata,
    Column("uid", KeyText, primary_key=True),
    # Commands of one call of a backend have this in common.
    Column("call", KeyText, nullable=False),
    Column("backend", KeyText, nullable=False),
    Column("operation", SmallInteger, nullable=False),
    # Of the one attempt that it names; empty = it is about all of the call.
    Column("attempt", KeyText, nullable=False),
    # Looks at a backend as a whole are found by backend and time, not by attempt.
    Column("look", Boolean, nullable=False),
    Column("failed", Boolean, nullable=False),
    Column("argv", JSON, nullable=False),
    Column("exit_code", Integer),
    Column("stderr", Text, nullable=False),
    Column("start_time", UtcTime, nullable=False),
    Column("duration_us", BigInteger, nullable=False),
    Column("jobs", Integer, nullable=False),
    Index("command_call", "call"),
    Index("command_start", "start_time"),
)
LOOK: ColumnElement[bool] = literal_column("look")
Index("command_look", command.c.backend, command.c.failed, command.c.uid, sqlite_where=LOOK, postgresql_where=LOOK)

# Attempts that a call of a backend was about.
attempt_call = Table(
    "attempt_call",
    metadata,
    Column("attempt", KeyText, primary_key=True),
    Column("call", KeyText, primary_key=True),
    Index("attempt_call_call", "call"),
)

# Which specs read an uploaded content.
sandbox_use = Table(
    "sandbox_use",
    metadata,
    Column("sha256", KeyText, primary_key=True),
    Column("spec", KeyText, primary_key=True),
    Index("sandbox_use_spec", "spec"),
)

sandbox = Table(
    "sandbox",
    metadata,
    Column("sha256", KeyText, primary_key=True),
    Column("size_bytes", Integer, nullable=False),
    Column("create_time", UtcTime, nullable=False),
)

# One row: who works on the jobs. A writer whose epoch is not the one here has lost its right.
lease = Table(
    "lease",
    metadata,
    Column("name", KeyText, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("expire_time", UtcTime, nullable=False),
)
