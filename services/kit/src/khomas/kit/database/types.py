"""Column types that mean the same on SQLite and PostgreSQL."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from typing import cast as seen_as

from sqlalchemy import BigInteger, ColumnElement, DateTime, Integer, Row, String, Text, TypeDecorator, cast
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeEngine

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class UtcTime(TypeDecorator[datetime]):
    """Moment with time zone: `timestamptz` on PostgreSQL, microseconds since 1970 on SQLite."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the native type."""
        if dialect.name == "postgresql":
            return dialect.type_descriptor(postgresql.TIMESTAMP(timezone=True))
        return dialect.type_descriptor(BigInteger())

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> object:
        """Refuse naive moments; they mean something else on every machine."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"the moment {value} has no time zone")
        return value if dialect.name == "postgresql" else (value - _EPOCH) // _MICROSECOND

    def process_result_value(self, value: object, dialect: Dialect) -> datetime | None:
        """Give UTC."""
        if isinstance(value, int):
            return _EPOCH + timedelta(microseconds=value)
        if not isinstance(value, datetime) or value.tzinfo is UTC:
            return seen_as(datetime | None, value)
        return value.astimezone(UTC)


def json_text(value: object) -> str:
    """Write JSON. Most columns of most rows are empty, which takes the encoder 2 us."""
    if value or not isinstance(value, dict | list):
        return json.dumps(value)
    return "{}" if isinstance(value, dict) else "[]"


def json_value(text: str) -> Any:
    """Read JSON."""
    if text == "{}":
        return {}
    return [] if text == "[]" else json.loads(text)


# Text compared byte by byte: prefix searches and pages in name order use its index on both databases.
# PostgreSQL's default collation would do neither.
KeyText = String().with_variant(postgresql.TEXT(collation="C"), "postgresql")


class UidText(TypeDecorator[str]):
    """A uid, text for Python: `uuid` on PostgreSQL, where that takes 45 bytes less with its index, text on SQLite.

    To compare it with what may be no uid, cast it to text: PostgreSQL refuses to read anything else as a `uuid`.
    """

    impl = String
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the native type."""
        native = postgresql.UUID(as_uuid=False) if dialect.name == "postgresql" else String()
        return dialect.type_descriptor(native)

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """Read it as text in the database, which takes less time than in Python."""
        return cast(column, Text)


# A bigint that SQLite accepts as its row id.
RowId = BigInteger().with_variant(Integer(), "sqlite")

# A row of a query whose columns the type checker cannot know.
AnyRow = Row[*tuple[Any, ...]]
