"""policies."""

import sqlalchemy as sa
from alembic import op

from khomas.kit.database import UtcTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "rescue",
        sa.Column("job", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("original", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.PrimaryKeyConstraint("job"),
    )
    with op.batch_alter_table("rescue", schema=None) as batch_op:
        batch_op.create_index("rescue_original", ["original"], unique=False)

    op.create_table(
        "sandbox_use",
        sa.Column("sha256", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("spec", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.PrimaryKeyConstraint("sha256", "spec"),
    )
    with op.batch_alter_table("sandbox_use", schema=None) as batch_op:
        batch_op.create_index("sandbox_use_spec", ["spec"], unique=False)

    op.create_table(
        "share_use",
        sa.Column("share", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("hour", sa.Integer(), nullable=False),
        sa.Column("cpu_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("share", "hour"),
    )
    op.create_table(
        "slow",
        sa.Column("attempt", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("job", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("efficiency", sa.Float(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("since", UtcTime(), nullable=False),
        sa.Column("kill_time", UtcTime(), nullable=True),
        sa.Column("kept", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("attempt"),
    )
    with op.batch_alter_table("slow", schema=None) as batch_op:
        batch_op.create_index("slow_job", ["job"], unique=False)

    with op.batch_alter_table("job", schema=None) as batch_op:
        batch_op.add_column(sa.Column("share", sa.Text(), server_default="", nullable=False))
        batch_op.add_column(sa.Column("retain_s", sa.BigInteger(), nullable=True))
        batch_op.create_index(
            "job_ended",
            ["end_time"],
            unique=False,
            sqlite_where=sa.text("parent = ''"),
            postgresql_where=sa.text("parent = ''"),
        )
        batch_op.drop_index("job_newest")
        batch_op.create_index(
            "job_newest",
            ["parent", "create_time", "uid"],
            unique=False,
            sqlite_where=sa.text("parent = ''"),
            postgresql_where=sa.text("parent = ''"),
        )
        batch_op.create_index(
            "job_retained",
            ["retain_s", "end_time"],
            unique=False,
            sqlite_where=sa.text("parent = '' AND retain_s IS NOT NULL"),
            postgresql_where=sa.text("parent = '' AND retain_s IS NOT NULL"),
        )
        batch_op.create_index(
            "job_pending",
            ["share"],
            unique=False,
            sqlite_where=sa.text("state = 2"),
            postgresql_where=sa.text("state = 2"),
        )
        batch_op.create_index(
            "job_share",
            ["share", sa.literal_column("priority DESC"), "due"],
            unique=False,
            sqlite_where=sa.text("due IS NOT NULL"),
            postgresql_where=sa.text("due IS NOT NULL"),
        )
