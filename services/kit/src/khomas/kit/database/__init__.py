"""A service's database: transactions, bulk statements, column types and migrations."""

from khomas.kit.database.bulk import in_values, insert_many, insert_new, rows_table
from khomas.kit.database.engine import Database
from khomas.kit.database.migrations import SchemaOutdated
from khomas.kit.database.statements import count_statements
from khomas.kit.database.types import AnyRow, KeyText, RowId, UtcTime

__all__ = [
    "AnyRow",
    "Database",
    "KeyText",
    "RowId",
    "SchemaOutdated",
    "UtcTime",
    "count_statements",
    "in_values",
    "insert_many",
    "insert_new",
    "rows_table",
]
