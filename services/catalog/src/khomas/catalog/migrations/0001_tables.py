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
        "adoption",
        sa.Column("uid", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("wanted", sa.LargeBinary(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("state", sa.Integer(), nullable=False),
        sa.Column("after_path", sa.String(), nullable=False),
        sa.Column("adopted_files", sa.BigInteger(), nullable=False),
        sa.Column("adopted_bytes", sa.BigInteger(), nullable=False),
        sa.Column("known_files", sa.BigInteger(), nullable=False),
        sa.Column("problems", sa.JSON(), nullable=False),
        sa.Column("create_time", UtcTime(), nullable=False),
        sa.Column("end_time", UtcTime(), nullable=True),
        sa.PrimaryKeyConstraint("uid"),
    )
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
        "dataset",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("uid", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("name", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("description", sa.String(), nullable=False),
        sa.Column("origin", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("state", sa.Integer(), nullable=False),
        sa.Column("file_count", sa.BigInteger(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("create_time", UtcTime(), nullable=False),
        sa.Column("update_time", UtcTime(), nullable=False),
        sa.Column("close_time", UtcTime(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
        sa.UniqueConstraint("uid"),
    )
    op.create_table(
        "directory",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("path", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("parent_id", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["parent_id"],
            ["directory.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("path"),
    )
    with op.batch_alter_table("directory", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_directory_parent_id"), ["parent_id"], unique=False)

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
        "metadata_key",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("name", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("type", sa.Integer(), nullable=False),
        sa.Column("unit", sa.String(), nullable=False),
        sa.Column("description", sa.String(), nullable=False),
        sa.Column("create_time", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "dataset_value",
        sa.Column("dataset_id", sa.BigInteger(), nullable=False),
        sa.Column("key_id", sa.BigInteger(), nullable=False),
        sa.Column("whole", sa.BigInteger(), nullable=True),
        sa.Column("number", sa.Double(), nullable=True),
        sa.Column("text", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=True),
        sa.ForeignKeyConstraint(
            ["dataset_id"],
            ["dataset.id"],
        ),
        sa.ForeignKeyConstraint(
            ["key_id"],
            ["metadata_key.id"],
        ),
        sa.PrimaryKeyConstraint("dataset_id", "key_id"),
    )
    with op.batch_alter_table("dataset_value", schema=None) as batch_op:
        batch_op.create_index(
            "dataset_value_number",
            ["key_id", "number"],
            unique=False,
            sqlite_where=sa.text("number IS NOT NULL"),
            postgresql_where=sa.text("number IS NOT NULL"),
        )
        batch_op.create_index(
            "dataset_value_text",
            ["key_id", "text"],
            unique=False,
            sqlite_where=sa.text("text IS NOT NULL"),
            postgresql_where=sa.text("text IS NOT NULL"),
        )
        batch_op.create_index(
            "dataset_value_whole",
            ["key_id", "whole"],
            unique=False,
            sqlite_where=sa.text("whole IS NOT NULL"),
            postgresql_where=sa.text("whole IS NOT NULL"),
        )

    op.create_table(
        "file",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("uid", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("name", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("directory_id", sa.BigInteger(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("adler32", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("md5", sa.String(), nullable=False),
        sa.Column("content_digest", sa.String(), nullable=False),
        sa.Column("origin", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("state", sa.Integer(), nullable=False),
        sa.Column("create_time", UtcTime(), nullable=False),
        sa.Column("update_time", UtcTime(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("delete_requester", sa.String(), nullable=True),
        sa.Column("delete_reason", sa.String(), nullable=True),
        sa.Column("delete_time", UtcTime(), nullable=True),
        sa.Column("purge_time", UtcTime(), nullable=True),
        sa.ForeignKeyConstraint(
            ["directory_id"],
            ["directory.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("uid"),
    )
    with op.batch_alter_table("file", schema=None) as batch_op:
        batch_op.create_index("file_directory", ["directory_id", "name"], unique=False)
        batch_op.create_index(
            "file_name", ["name"], unique=True, sqlite_where=sa.text("state < 3"), postgresql_where=sa.text("state < 3")
        )
        batch_op.create_index(
            "file_origin",
            ["origin"],
            unique=False,
            sqlite_where=sa.text("origin != ''"),
            postgresql_where=sa.text("origin != ''"),
        )
        batch_op.create_index(
            "file_purge",
            ["purge_time"],
            unique=False,
            sqlite_where=sa.text("state = 2"),
            postgresql_where=sa.text("state = 2"),
        )

    op.create_table(
        "dataset_file",
        sa.Column("dataset_id", sa.BigInteger(), nullable=False),
        sa.Column("file_id", sa.BigInteger(), nullable=False),
        sa.Column("add_time", UtcTime(), nullable=False),
        sa.Column("remove_time", UtcTime(), nullable=True),
        sa.ForeignKeyConstraint(
            ["dataset_id"],
            ["dataset.id"],
        ),
        sa.ForeignKeyConstraint(
            ["file_id"],
            ["file.id"],
        ),
        sa.PrimaryKeyConstraint("dataset_id", "file_id", "add_time"),
    )
    with op.batch_alter_table("dataset_file", schema=None) as batch_op:
        batch_op.create_index("dataset_file_file", ["file_id"], unique=False)

    op.create_table(
        "file_value",
        sa.Column("file_id", sa.BigInteger(), nullable=False),
        sa.Column("key_id", sa.BigInteger(), nullable=False),
        sa.Column("whole", sa.BigInteger(), nullable=True),
        sa.Column("number", sa.Double(), nullable=True),
        sa.Column("text", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=True),
        sa.ForeignKeyConstraint(
            ["file_id"],
            ["file.id"],
        ),
        sa.ForeignKeyConstraint(
            ["key_id"],
            ["metadata_key.id"],
        ),
        sa.PrimaryKeyConstraint("file_id", "key_id"),
    )
    with op.batch_alter_table("file_value", schema=None) as batch_op:
        batch_op.create_index(
            "file_value_number",
            ["key_id", "number"],
            unique=False,
            sqlite_where=sa.text("number IS NOT NULL"),
            postgresql_where=sa.text("number IS NOT NULL"),
        )
        batch_op.create_index(
            "file_value_text",
            ["key_id", "text"],
            unique=False,
            sqlite_where=sa.text("text IS NOT NULL"),
            postgresql_where=sa.text("text IS NOT NULL"),
        )
        batch_op.create_index(
            "file_value_whole",
            ["key_id", "whole"],
            unique=False,
            sqlite_where=sa.text("whole IS NOT NULL"),
            postgresql_where=sa.text("whole IS NOT NULL"),
        )

    op.create_table(
        "parent",
        sa.Column("child_id", sa.BigInteger(), nullable=False),
        sa.Column("parent_id", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["child_id"],
            ["file.id"],
        ),
        sa.ForeignKeyConstraint(
            ["parent_id"],
            ["file.id"],
        ),
        sa.PrimaryKeyConstraint("child_id", "parent_id"),
    )
    with op.batch_alter_table("parent", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_parent_parent_id"), ["parent_id"], unique=False)

    op.create_table(
        "replica",
        sa.Column("file_id", sa.BigInteger(), nullable=False),
        sa.Column("storage_element", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("path", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=True),
        sa.Column("state", sa.Integer(), nullable=False),
        sa.Column("verify_time", UtcTime(), nullable=True),
        sa.ForeignKeyConstraint(
            ["file_id"],
            ["file.id"],
        ),
        sa.PrimaryKeyConstraint("file_id", "storage_element"),
    )
    with op.batch_alter_table("replica", schema=None) as batch_op:
        batch_op.create_index("replica_storage_element", ["storage_element", "file_id"], unique=False)
