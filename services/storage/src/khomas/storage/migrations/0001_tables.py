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
        "deletion",
        sa.Column("uid", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("file", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("file_uid", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("storage_element", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("state", sa.Integer(), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_attempt_time", UtcTime(), nullable=False),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("lease_expire_time", UtcTime(), nullable=True),
        sa.Column("lease_epoch", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("create_time", UtcTime(), nullable=False),
        sa.Column("end_time", UtcTime(), nullable=True),
        sa.PrimaryKeyConstraint("uid"),
    )
    with op.batch_alter_table("deletion", schema=None) as batch_op:
        batch_op.create_index("deletion_of_file", ["file_uid", "storage_element"], unique=False)
        batch_op.create_index("deletion_queue", ["state", "next_attempt_time"], unique=False)

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
        "event_cursor",
        sa.Column("consumer", sa.Text(), nullable=False),
        sa.Column("cursor", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("consumer"),
    )
    op.create_table(
        "replica",
        sa.Column("file_uid", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("storage_element", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("path", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("file_uid", "storage_element"),
    )
    with op.batch_alter_table("replica", schema=None) as batch_op:
        batch_op.create_index("replica_by_path", ["storage_element", "path"], unique=False)

    op.create_table(
        "secret",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "space",
        sa.Column("storage_element", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("used_bytes", sa.BigInteger(), nullable=False),
        sa.Column("file_count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("storage_element"),
    )
    op.create_table(
        "storage_element",
        sa.Column("id", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("uid", sa.String(), nullable=False),
        sa.Column("description", sa.String(), nullable=False),
        sa.Column("site", sa.String(), nullable=False),
        sa.Column("media", sa.Integer(), nullable=False),
        sa.Column("access_points", sa.JSON(), nullable=False),
        sa.Column("read_only", sa.Boolean(), nullable=False),
        sa.Column("capacity_bytes", sa.BigInteger(), nullable=False),
        sa.Column("create_time", UtcTime(), nullable=False),
        sa.Column("update_time", UtcTime(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("free_bytes", sa.BigInteger(), nullable=False),
        sa.Column("reachable", sa.Boolean(), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("check_time", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "transfer",
        sa.Column("uid", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("file", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("file_uid", sa.String(), nullable=False),
        sa.Column("destination", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("sources", sa.String(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("origin", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("state", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Integer(), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("next_attempt_time", UtcTime(), nullable=False),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("lease_expire_time", UtcTime(), nullable=True),
        sa.Column("lease_epoch", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("create_time", UtcTime(), nullable=False),
        sa.Column("state_time", UtcTime(), nullable=False),
        sa.Column("end_time", UtcTime(), nullable=True),
        sa.PrimaryKeyConstraint("uid"),
    )
    with op.batch_alter_table("transfer", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_transfer_origin"), ["origin"], unique=False)
        batch_op.create_index("transfer_queue", ["state", "next_attempt_time"], unique=False)
        batch_op.create_index("transfer_wanted", ["file", "destination", "state"], unique=False)

    op.create_table(
        "transfer_attempt",
        sa.Column("transfer_uid", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("reason", sa.Integer(), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("start_time", UtcTime(), nullable=False),
        sa.Column("elapsed_seconds", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("transfer_uid", "number"),
    )
    op.create_table(
        "upload",
        sa.Column("uid", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("storage_element", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("max_files", sa.Integer(), nullable=False),
        sa.Column("reserve_bytes", sa.BigInteger(), nullable=False),
        sa.Column("origin", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("state", sa.Integer(), nullable=False),
        sa.Column("commit_uid", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=True),
        sa.Column("create_time", UtcTime(), nullable=False),
        sa.Column("expire_time", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("uid"),
    )
    with op.batch_alter_table("upload", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_upload_commit_uid"), ["commit_uid"], unique=False)
        batch_op.create_index("upload_by_state", ["state", "expire_time"], unique=False)

    op.create_table(
        "upload_commit",
        sa.Column("uid", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("request_key", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("request_digest", sa.LargeBinary(), nullable=False),
        sa.Column("placements", sa.JSON(), nullable=False),
        sa.Column("catalog_request", sa.LargeBinary(), nullable=False),
        sa.Column("memberships", sa.JSON(), nullable=False),
        sa.Column("answer", sa.LargeBinary(), nullable=True),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("lease_expire_time", UtcTime(), nullable=True),
        sa.Column("lease_epoch", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("create_time", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("uid"),
        sa.UniqueConstraint("request_key"),
    )
    with op.batch_alter_table("upload_commit", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_upload_commit_create_time"), ["create_time"], unique=False)

    op.create_table(
        "uploaded_file",
        sa.Column("upload_uid", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("adler32", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("content_digest", sa.String(), nullable=False),
        sa.Column("stamp", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("upload_uid", "number"),
    )
