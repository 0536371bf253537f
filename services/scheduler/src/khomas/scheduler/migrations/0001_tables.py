"""tables."""

import sqlalchemy as sa
from alembic import op

from khomas.kit.database import UtcTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "answer",
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("request_digest", sa.LargeBinary(), nullable=False),
        sa.Column("answer", sa.LargeBinary(), nullable=False),
        sa.Column("create_time", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )
    with op.batch_alter_table("answer", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_answer_create_time"), ["create_time"], unique=False)

    op.create_table(
        "attempt",
        sa.Column("uid", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("job", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("backend", sa.Text(), nullable=False),
        sa.Column("native_id", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("reason", sa.SmallInteger(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("native_state", sa.Text(), nullable=False),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("signal", sa.Integer(), nullable=True),
        sa.Column("usage", sa.JSON(), nullable=False),
        sa.Column("outputs", sa.JSON(), nullable=False),
        sa.Column("record", sa.JSON(), nullable=False),
        sa.Column("upload", sa.Text(), nullable=False),
        sa.Column("inputs", sa.JSON(), nullable=False),
        sa.Column("script_sha256", sa.Text(), nullable=False),
        sa.Column("create_time", UtcTime(), nullable=False),
        sa.Column("submit_time", UtcTime(), nullable=True),
        sa.Column("start_time", UtcTime(), nullable=True),
        sa.Column("end_time", UtcTime(), nullable=True),
        sa.Column("collected", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("uid"),
    )
    with op.batch_alter_table("attempt", schema=None) as batch_op:
        batch_op.create_index("attempt_job", ["job", "number"], unique=True)
        batch_op.create_index(
            "attempt_left",
            ["end_time"],
            unique=False,
            sqlite_where=sa.text("end_time IS NOT NULL AND NOT collected"),
            postgresql_where=sa.text("end_time IS NOT NULL AND NOT collected"),
        )
        batch_op.create_index(
            "attempt_open",
            ["uid"],
            unique=False,
            sqlite_where=sa.text("end_time IS NULL"),
            postgresql_where=sa.text("end_time IS NULL"),
        )

    op.create_table(
        "dependency",
        sa.Column("job", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("target", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("condition", sa.SmallInteger(), nullable=False),
        sa.Column("min_fraction", sa.Float(), nullable=False),
        sa.Column("kept", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("job", "target"),
    )
    with op.batch_alter_table("dependency", schema=None) as batch_op:
        batch_op.create_index("dependency_target", ["target"], unique=False)

    op.create_table(
        "event",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("xid", sa.BigInteger(), nullable=False),
        sa.Column("uid", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("subject_uid", sa.Text(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("trace_id", sa.Text(), nullable=False),
        sa.Column("create_time", UtcTime(), nullable=False),
        sa.Column("resource", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("event", schema=None) as batch_op:
        batch_op.create_index("event_position", ["xid", "id"], unique=False)

    op.create_table(
        "job",
        sa.Column("uid", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("parent", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("index", sa.Integer(), nullable=False),
        sa.Column("spec", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("reason", sa.SmallInteger(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("since", UtcTime(), nullable=False),
        sa.Column("desired", sa.SmallInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("counted", sa.Integer(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("application_status", sa.Text(), nullable=False),
        sa.Column("due", UtcTime(), nullable=True),
        sa.Column("next_attempt_time", UtcTime(), nullable=True),
        sa.Column("start_after", UtcTime(), nullable=True),
        sa.Column("deadline", UtcTime(), nullable=True),
        sa.Column("waits", sa.Integer(), nullable=False),
        sa.Column("memory_factor", sa.Float(), nullable=False),
        sa.Column("wall_factor", sa.Float(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("display_name", sa.Text(), nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("backend", sa.Text(), nullable=False),
        sa.Column("parameters", sa.JSON(), nullable=False),
        sa.Column("merges", sa.Text(), nullable=False),
        sa.Column("create_time", UtcTime(), nullable=False),
        sa.Column("update_time", UtcTime(), nullable=False),
        sa.Column("end_time", UtcTime(), nullable=True),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("made", sa.Integer(), nullable=False),
        sa.Column("rest_state", sa.SmallInteger(), nullable=False),
        sa.Column("rest_reason", sa.SmallInteger(), nullable=False),
        sa.Column("max_running", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("uid"),
    )
    with op.batch_alter_table("job", schema=None) as batch_op:
        batch_op.create_index(
            "jobCANCELLING",
            ["uid"],
            unique=False,
            sqlite_where=sa.text("desired = 3 AND end_time IS NULL"),
            postgresql_where=sa.text("desired = 3 AND end_time IS NULL"),
        )
        batch_op.create_index("job_children", ["parent", "index"], unique=False)
        batch_op.create_index(
            "job_deadline",
            ["deadline"],
            unique=False,
            sqlite_where=sa.text("deadline IS NOT NULL"),
            postgresql_where=sa.text("deadline IS NOT NULL"),
        )
        batch_op.create_index(
            "job_due",
            [sa.literal_column("priority DESC"), "due"],
            unique=False,
            sqlite_where=sa.text("due IS NOT NULL"),
            postgresql_where=sa.text("due IS NOT NULL"),
        )
        batch_op.create_index(
            "job_newest",
            ["create_time", "uid"],
            unique=False,
            sqlite_where=sa.text("parent = ''"),
            postgresql_where=sa.text("parent = ''"),
        )
        batch_op.create_index("job_origin", ["origin"], unique=False)

    op.create_table(
        "job_count",
        sa.Column("parent", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("reason", sa.SmallInteger(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("parent", "state", "reason"),
    )
    op.create_table(
        "lease",
        sa.Column("name", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("expire_time", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "sandbox",
        sa.Column("sha256", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("create_time", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("sha256"),
    )
    op.create_table(
        "spec",
        sa.Column("uid", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("spec", sa.LargeBinary(), nullable=False),
        sa.Column("frozen", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("uid"),
    )
