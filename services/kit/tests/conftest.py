"""Fixtures of the kit's tests."""

from khomas.kit.testing.postgresql import database_url, postgresql, postgresql_url

__all__ = ["database_url", "postgresql", "postgresql_url"]
