"""rules."""

import sqlalchemy as sa
from alembic import op

from khomas.kit.database import UtcTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_KEY = sa.String().with_variant(sa.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "drain",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("uid", sa.String(), nullable=False),
        sa.Column("state", sa.Integer(), nullable=False),
        sa.Column("decommission", sa.Boolean(), nullable=False),
        sa.Column("files_at_start", sa.BigInteger(), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("create_time", UtcTime(), nullable=False),
        sa.Column("end_time", UtcTime(), nullable=True),
        sa.Column("after_file", _KEY, nullable=False),
        sa.Column("due_time", UtcTime(), nullable=False),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("lease_expire_time", UtcTime(), nullable=True),
        sa.Column("lease_epoch", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "policy",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("uid", sa.String(), nullable=False),
        sa.Column("description", sa.String(), nullable=False),
        sa.Column("dataset_pattern", sa.String(), nullable=False),
        sa.Column("filter", sa.String(), nullable=False),
        sa.Column("rule", sa.LargeBinary(), nullable=False),
        sa.Column("suspended", sa.Boolean(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("rules", sa.BigInteger(), nullable=False),
        sa.Column("create_time", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "policy_dataset",
        sa.Column("dataset", _KEY, nullable=False),
        sa.Column("policy", _KEY, nullable=False),
        sa.PrimaryKeyConstraint("dataset", "policy"),
    )
    op.create_table(
        "replica_access",
        sa.Column("file_uid", _KEY, nullable=False),
        sa.Column("storage_element", _KEY, nullable=False),
        sa.Column("access_time", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("file_uid", "storage_element"),
    )
    op.create_table(
        "rule",
        sa.Column("uid", _KEY, nullable=False),
        sa.Column("dataset", _KEY, nullable=False),
        sa.Column("directory", _KEY, nullable=False),
        sa.Column("filter", sa.String(), nullable=False),
        sa.Column("expression", sa.String(), nullable=False),
        sa.Column("copies", sa.Integer(), nullable=False),
        sa.Column("expire_time", UtcTime(), nullable=True),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("grouping", sa.Integer(), nullable=False),
        sa.Column("share", sa.String(), nullable=False),
        sa.Column("origin", sa.String(), nullable=False),
        sa.Column("suspended", sa.Boolean(), nullable=False),
        sa.Column("description", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("policy", sa.String(), nullable=False),
        sa.Column("state", sa.Integer(), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("files", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("ok_copies", sa.BigInteger(), nullable=False),
        sa.Column("replicating_copies", sa.BigInteger(), nullable=False),
        sa.Column("stuck_copies", sa.BigInteger(), nullable=False),
        sa.Column("missing_bytes", sa.BigInteger(), nullable=False),
        sa.Column("create_time", UtcTime(), nullable=False),
        sa.Column("update_time", UtcTime(), nullable=False),
        sa.Column("state_time", UtcTime(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("places", sa.JSON(), nullable=False),
        sa.Column("listing", sa.BigInteger(), nullable=False),
        sa.Column("list_due", sa.Boolean(), nullable=False),
        sa.Column("due_time", UtcTime(), nullable=True),
        sa.Column("touched", sa.BigInteger(), nullable=False),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("lease_expire_time", UtcTime(), nullable=True),
        sa.Column("lease_epoch", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("uid"),
    )
    with op.batch_alter_table("rule", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_rule_dataset"), ["dataset"], unique=False)
        batch_op.create_index(batch_op.f("ix_rule_due_time"), ["due_time"], unique=False)

    op.create_table(
        "rule_copy",
        sa.Column("rule_uid", _KEY, nullable=False),
        sa.Column("file_uid", _KEY, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("file", _KEY, nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("storage_element", _KEY, nullable=False),
        sa.Column("moving_from", _KEY, nullable=False),
        sa.Column("state", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Integer(), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("transfer_uid", _KEY, nullable=False),
        sa.Column("refused", sa.String(), nullable=False),
        sa.Column("listing", sa.BigInteger(), nullable=False),
        sa.Column("state_time", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("rule_uid", "file_uid", "number"),
    )
    with op.batch_alter_table("rule_copy", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_rule_copy_transfer_uid"), ["transfer_uid"], unique=False)
        batch_op.create_index("rule_copy_by_state", ["rule_uid", "state"], unique=False)
        batch_op.create_index("rule_copy_moving", ["moving_from"], unique=False)
        batch_op.create_index("rule_copy_of_file", ["file_uid", "storage_element"], unique=False)
        batch_op.create_index("rule_copy_on", ["storage_element", "state", "transfer_uid", "size_bytes"], unique=False)

    op.create_table(
        "rule_join",
        sa.Column("rule_uid", _KEY, nullable=False),
        sa.Column("file", _KEY, nullable=False),
        sa.Column("times", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("rule_uid", "file"),
    )
    with op.batch_alter_table("deletion", schema=None) as batch_op:
        batch_op.add_column(sa.Column("single", sa.Boolean(), server_default=sa.false(), nullable=False))

    with op.batch_alter_table("storage_element", schema=None) as batch_op:
        batch_op.add_column(sa.Column("labels", sa.JSON(), server_default="{}", nullable=False))
        batch_op.add_column(sa.Column("weight", sa.Integer(), server_default="0", nullable=False))
        batch_op.add_column(sa.Column("high_watermark", sa.Integer(), server_default="0", nullable=False))
        batch_op.add_column(sa.Column("low_watermark", sa.Integer(), server_default="0", nullable=False))
        batch_op.add_column(sa.Column("draining", sa.Boolean(), server_default=sa.false(), nullable=False))
