"""A service's database: transactions, bulk statements, column types and migrations."""

from khomas.kit.database.bulk import in_values, insert_new, rows_table, values_param
from khomas.kit.database.driver import Prepared, fetch
from khomas.kit.database.engine import Database
from khomas.kit.database.insertion import Rows, insert_many, insert_rows
from khomas.kit.database.migrations import SchemaOutdated
from khomas.kit.database.statements import count_statements
from khomas.kit.database.types import AnyRow, KeyText, RowId, UidText, UtcTime

__all__ = [
    "AnyRow",
    "Database",
    "KeyText",
    "Prepared",
    "RowId",
    "Rows",
    "SchemaOutdated",
    "UidText",
    "UtcTime",
    "count_statements",
    "fetch",
    "in_values",
    "insert_many",
    "insert_new",
    "insert_rows",
    "rows_table",
    "values_param",
]
