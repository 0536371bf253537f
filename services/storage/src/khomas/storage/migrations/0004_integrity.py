"""integrity."""

import sqlalchemy as sa
from alembic import op

from khomas.kit.database import UtcTime

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_KEY = sa.String().with_variant(sa.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "care",
        sa.Column("storage_element", _KEY, nullable=False),
        sa.Column("verify_period_seconds", sa.Double(), nullable=True),
        sa.Column("verify_bytes_per_second", sa.BigInteger(), nullable=True),
        sa.Column("reconcile_interval_seconds", sa.Double(), nullable=True),
        sa.Column("max_lost_percent", sa.Double(), nullable=True),
        sa.Column("repair_automatically", sa.Boolean(), nullable=True),
        sa.Column("deletions_per_second", sa.Double(), nullable=True),
        sa.Column("probe_interval_seconds", sa.Double(), nullable=True),
        sa.Column("deletions_until", UtcTime(), nullable=True),
        sa.Column("verify_next", UtcTime(), nullable=True),
        sa.Column("reconcile_next", UtcTime(), nullable=True),
        sa.PrimaryKeyConstraint("storage_element"),
    )
    op.create_table(
        "expected_replica",
        sa.Column("run_uid", _KEY, nullable=False),
        sa.Column("file_uid", _KEY, nullable=False),
        sa.Column("path", _KEY, nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("adler32", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("run_uid", "file_uid"),
    )
    with op.batch_alter_table("expected_replica", schema=None) as batch_op:
        batch_op.create_index("expected_replica_path", ["run_uid", "path"], unique=False)

    op.create_table(
        "found_file",
        sa.Column("run_uid", _KEY, nullable=False),
        sa.Column("path", _KEY, nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("modify_time", UtcTime(), nullable=True),
        sa.PrimaryKeyConstraint("run_uid", "path"),
    )
    op.create_table(
        "incident",
        sa.Column("uid", _KEY, nullable=False),
        sa.Column("open_key", _KEY, nullable=True),
        sa.Column("storage_element", _KEY, nullable=False),
        sa.Column("path", _KEY, nullable=False),
        sa.Column("kind", sa.Integer(), nullable=False),
        sa.Column("state", sa.Integer(), nullable=False),
        sa.Column("file", _KEY, nullable=False),
        sa.Column("file_uid", _KEY, nullable=False),
        sa.Column("expected_size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("found_size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("expected_adler32", sa.String(), nullable=False),
        sa.Column("found_adler32", sa.String(), nullable=False),
        sa.Column("found_modify_time", UtcTime(), nullable=True),
        sa.Column("proposed_repair", sa.Integer(), nullable=False),
        sa.Column("repair", sa.Integer(), nullable=False),
        sa.Column("requester", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("transfer", sa.String(), nullable=False),
        sa.Column("quarantine_path", sa.String(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_attempt_time", UtcTime(), nullable=False),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("lease_expire_time", UtcTime(), nullable=True),
        sa.Column("lease_epoch", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("origin", sa.String(), nullable=False),
        sa.Column("create_time", UtcTime(), nullable=False),
        sa.Column("seen_time", UtcTime(), nullable=False),
        sa.Column("end_time", UtcTime(), nullable=True),
        sa.PrimaryKeyConstraint("uid"),
        sa.UniqueConstraint("open_key"),
    )
    with op.batch_alter_table("incident", schema=None) as batch_op:
        batch_op.create_index("incident_of_element", ["storage_element", "state", "create_time"], unique=False)
        batch_op.create_index("incident_of_file", ["file_uid"], unique=False)
        batch_op.create_index("incident_queue", ["state", "next_attempt_time"], unique=False)

    op.create_table(
        "probe",
        sa.Column("source", _KEY, nullable=False),
        sa.Column("destination", _KEY, nullable=False),
        sa.Column("time", UtcTime(), nullable=True),
        sa.Column("failed_step", sa.String(), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("elapsed_seconds", sa.Double(), nullable=False),
        sa.Column("bytes_per_second", sa.Double(), nullable=False),
        sa.Column("recent", sa.String(), nullable=False),
        sa.Column("success_time", UtcTime(), nullable=True),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("next_time", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("source", "destination"),
    )
    op.create_table(
        "reconciliation",
        sa.Column("uid", _KEY, nullable=False),
        sa.Column("storage_element", _KEY, nullable=False),
        sa.Column("mode", sa.Integer(), nullable=False),
        sa.Column("grace_seconds", sa.Double(), nullable=False),
        sa.Column("max_lost_percent", sa.Double(), nullable=False),
        sa.Column("origin", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("state", sa.Integer(), nullable=False),
        sa.Column("phase", sa.Integer(), nullable=False),
        sa.Column("position", sa.String(), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("expected_files", sa.BigInteger(), nullable=False),
        sa.Column("found_files", sa.BigInteger(), nullable=False),
        sa.Column("found_bytes", sa.BigInteger(), nullable=False),
        sa.Column("verified_files", sa.BigInteger(), nullable=False),
        sa.Column("unusable_names", sa.BigInteger(), nullable=False),
        sa.Column("lost", sa.BigInteger(), nullable=False),
        sa.Column("dark", sa.BigInteger(), nullable=False),
        sa.Column("size_differs", sa.BigInteger(), nullable=False),
        sa.Column("checksum_differs", sa.BigInteger(), nullable=False),
        sa.Column("unreadable", sa.BigInteger(), nullable=False),
        sa.Column("release_note", sa.String(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_attempt_time", UtcTime(), nullable=False),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("lease_expire_time", UtcTime(), nullable=True),
        sa.Column("lease_epoch", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("create_time", UtcTime(), nullable=False),
        sa.Column("end_time", UtcTime(), nullable=True),
        sa.PrimaryKeyConstraint("uid"),
    )
    with op.batch_alter_table("reconciliation", schema=None) as batch_op:
        batch_op.create_index("reconciliation_of_element", ["storage_element", "create_time"], unique=False)
        batch_op.create_index("reconciliation_queue", ["state", "next_attempt_time"], unique=False)

    with op.batch_alter_table("deletion", schema=None) as batch_op:
        batch_op.add_column(sa.Column("reason", sa.Integer(), server_default="0", nullable=False))

    with op.batch_alter_table("replica", schema=None) as batch_op:
        batch_op.add_column(sa.Column("state", sa.Integer(), server_default="1", nullable=False))
        batch_op.add_column(sa.Column("verify_time", UtcTime(), nullable=True))
        batch_op.create_index("replica_by_verify_time", ["storage_element", "state", "verify_time"], unique=False)
