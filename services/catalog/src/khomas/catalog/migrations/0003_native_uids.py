"""native uids."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply; they are text on SQLite as before."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE file ALTER COLUMN uid TYPE uuid USING uid::uuid")
