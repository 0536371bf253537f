"""Run by Alembic: apply what the caller prepared, on the caller's connection."""

from alembic import context

context.configure(**context.config.attributes["khomas"])
with context.begin_transaction():
    context.run_migrations()
