"""links."""

import sqlalchemy as sa
from alembic import op

from khomas.kit.database import UtcTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_KEY = sa.String().with_variant(sa.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("transfer", schema=None) as batch_op:
        batch_op.add_column(sa.Column("deadline", UtcTime(), nullable=True))
        batch_op.add_column(sa.Column("share", sa.String(), server_default="", nullable=False))
        batch_op.add_column(sa.Column("lane", _KEY, server_default="", nullable=False))
        batch_op.add_column(sa.Column("turn", sa.Double(), server_default="0", nullable=False))
        batch_op.add_column(sa.Column("run", sa.String(), server_default="", nullable=False))
        batch_op.add_column(sa.Column("moved_bytes", sa.BigInteger(), server_default="0", nullable=False))
        batch_op.add_column(sa.Column("external", sa.String(), server_default="", nullable=False))
        batch_op.add_column(sa.Column("hidden", sa.String(), server_default="", nullable=False))
        batch_op.drop_index("transfer_queue")
        batch_op.create_index(
            "transfer_pause",
            ["next_attempt_time"],
            unique=False,
            sqlite_where=sa.text("state + 0 = 1 AND reason + 0 = 2"),
            postgresql_where=sa.text("state + 0 = 1 AND reason + 0 = 2"),
        )
        batch_op.create_index("transfer_lane", ["state", "reason", "lane", "turn"], unique=False)
        batch_op.create_index(
            "transfer_deadline",
            ["deadline"],
            unique=False,
            sqlite_where=sa.text("state + 0 = 1 AND deadline IS NOT NULL"),
            postgresql_where=sa.text("state + 0 = 1 AND deadline IS NOT NULL"),
        )
        batch_op.create_index(batch_op.f("ix_transfer_end_time"), ["end_time"], unique=False)
    # Which source they will be read from is chosen when it is their turn.
    op.execute(sa.text("UPDATE transfer SET lane = '>' || destination WHERE state IN (1, 2)"))
    with op.batch_alter_table("transfer_attempt", schema=None) as batch_op:
        batch_op.add_column(sa.Column("queued_seconds", sa.Double(), server_default="0", nullable=False))
        batch_op.add_column(sa.Column("bottleneck", sa.Integer(), server_default="0", nullable=False))
        batch_op.add_column(sa.Column("streamed_bytes", sa.BigInteger(), server_default="0", nullable=False))
        batch_op.add_column(sa.Column("executor", sa.String(), server_default="", nullable=False))

    op.create_table(
        "link",
        sa.Column("source", _KEY, nullable=False),
        sa.Column("destination", _KEY, nullable=False),
        sa.Column("streams", sa.Integer(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("rate_before", sa.Double(), nullable=False),
        sa.Column("window_start", UtcTime(), nullable=False),
        sa.Column("window_bytes", sa.BigInteger(), nullable=False),
        sa.Column("window_files", sa.Integer(), nullable=False),
        sa.Column("window_errors", sa.Integer(), nullable=False),
        sa.Column("count_time", UtcTime(), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("error_time", UtcTime(), nullable=True),
        sa.Column("arrive_time", UtcTime(), nullable=True),
        sa.PrimaryKeyConstraint("source", "destination"),
    )
    op.create_table(
        "link_hour",
        sa.Column("source", _KEY, nullable=False),
        sa.Column("destination", _KEY, nullable=False),
        sa.Column("hour", UtcTime(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("files", sa.BigInteger(), nullable=False),
        sa.Column("errors", sa.BigInteger(), nullable=False),
        sa.Column("stream_seconds", sa.Double(), nullable=False),
        sa.Column("busy_seconds", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("source", "destination", "hour"),
    )
    op.create_table(
        "link_limit",
        sa.Column("source", _KEY, nullable=False),
        sa.Column("destination", _KEY, nullable=False),
        sa.Column("max_streams", sa.Integer(), nullable=False),
        sa.Column("max_rate", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("source", "destination"),
    )
    op.create_table(
        "transfer_turn",
        sa.Column("lane", _KEY, nullable=False),
        sa.Column("share", _KEY, nullable=False),
        sa.Column("turn", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("lane", "share"),
    )
