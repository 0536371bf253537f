"""replica paths."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("replica", schema=None) as batch_op:
        batch_op.create_index(
            "replica_path",
            ["path"],
            unique=False,
            sqlite_where=sa.text("path IS NOT NULL"),
            postgresql_where=sa.text("path IS NOT NULL"),
        )
