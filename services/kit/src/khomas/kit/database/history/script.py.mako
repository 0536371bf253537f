"""${message}."""

import sqlalchemy as sa
from alembic import op

${imports}

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    ${"\n".join(line for line in upgrades.splitlines() if "###" not in line).strip()}
