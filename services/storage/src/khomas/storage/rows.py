"""Rows of the database as plain mappings."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Result, Row


def mapping(row: Row[Any]) -> Mapping[str, Any]:
    """Return a row by column name."""
    return {str(key): value for key, value in row._mapping.items()}  # noqa: SLF001  SQLAlchemy's public name


def mappings(result: Result[Any]) -> Sequence[Mapping[str, Any]]:
    """Return all rows by column name."""
    return [mapping(row) for row in result.all()]
