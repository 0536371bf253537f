"""Column types that mean the same on SQLite and PostgreSQL."""

import json
from collections.abc import Callable
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

    # Below SQLAlchemy's `process_bind_param` and `process_result_value`: rows have many moments, and those two calls
    # that SQLAlchemy makes of each take as long as the rest.
    def bind_processor(self, dialect: Dialect) -> Callable[[datetime | None], object]:
        """Refuse naive moments; they mean something else on every machine."""
        return _aware if dialect.name == "postgresql" else _microseconds

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], datetime | None]:
        """Give UTC."""
        return _in_utc


def _aware(value: datetime | None) -> datetime | None:
    if value is not None and value.tzinfo is None:
        raise ValueError(f"the moment {value} has no time zone")
    return value


def _microseconds(value: datetime | None) -> int | None:
    moment = _aware(value)
    return None if moment is None else (moment - _EPOCH) // _MICROSECOND


def _in_utc(value: object) -> datetime | None:
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
