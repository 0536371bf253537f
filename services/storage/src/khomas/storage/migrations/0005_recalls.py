"""recalls."""

import sqlalchemy as sa
from alembic import op

from khomas.kit.database import UtcTime

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_KEY = sa.String().with_variant(sa.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "recall",
        sa.Column("uid", _KEY, nullable=False),
        sa.Column("active_key", _KEY, nullable=True),
        sa.Column("file", _KEY, nullable=False),
        sa.Column("file_uid", _KEY, nullable=False),
        sa.Column("storage_element", _KEY, nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Integer(), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("request_uid", _KEY, nullable=False),
        sa.Column("native_id", _KEY, nullable=False),
        sa.Column("owed", sa.String(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("queue_position", sa.BigInteger(), nullable=False),
        sa.Column("position_estimated", sa.Boolean(), nullable=False),
        sa.Column("pin_seconds", sa.Double(), nullable=False),
        sa.Column("pin_time", UtcTime(), nullable=True),
        sa.Column("due_time", UtcTime(), nullable=True),
        sa.Column("origin", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("lease_expire_time", UtcTime(), nullable=True),
        sa.Column("lease_epoch", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("create_time", UtcTime(), nullable=False),
        sa.Column("state_time", UtcTime(), nullable=False),
        sa.Column("end_time", UtcTime(), nullable=True),
        sa.PrimaryKeyConstraint("uid"),
        sa.UniqueConstraint("active_key"),
    )
    with op.batch_alter_table("recall", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_recall_file"), ["file"], unique=False)
        batch_op.create_index("recall_by_element", ["storage_element", "state", "state_time"], unique=False)
        batch_op.create_index("recall_due", ["due_time"], unique=False)

    op.create_table(
        "recall_request",
        sa.Column("uid", _KEY, nullable=False),
        sa.Column("storage_element", _KEY, nullable=False),
        sa.Column("files", sa.Integer(), nullable=False),
        sa.Column("native_id", _KEY, nullable=False),
        sa.Column("create_time", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("uid"),
    )
    with op.batch_alter_table("recall_request", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_recall_request_create_time"), ["create_time"], unique=False)
