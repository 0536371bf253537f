"""Pages of a list, in an order that new rows do not disturb."""

import base64
import copy
import hashlib
import json
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from sqlalchemy import Column, ColumnElement, Select, and_, literal, or_, tuple_, type_coerce
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import NullType

from khomas.kit.database import AnyRow
from khomas.kit.database.driver import result_processor
from khomas.kit.errors import FieldInvalid, OrderInvalid, PageTokenInvalid
from khomas.kit.filtering.fields import nearest

_TERM = re.compile(r"([a-zA-Z_][\w.]*)(?:\s+(asc|desc))?")
_CHECK_BYTES = 8


class ListRequest(Protocol):
    """A request of a List rpc."""

    page_size: int
    page_token: str

    def SerializeToString(self, *, deterministic: bool = ...) -> bytes:  # noqa: N802  protobuf's name
        """Return the wire form."""


@dataclass(frozen=True, slots=True)
class Page:
    """Rows and how to go on."""

    rows: Sequence[AnyRow]
    # Empty at the end of the list.
    next_page_token: str


@dataclass(frozen=True, slots=True)
class Ordering:
    """The fields that a list can be ordered by; none of them may be NULL.

    `default` is an order_by; `unique` decides between equals.
    """

    fields: Mapping[str, ColumnElement[Any]]
    unique: ColumnElement[Any]
    default: str = ""

    def __post_init__(self) -> None:
        nullable = [name for name, field in self.fields.items() if isinstance(field, Column) and field.nullable]
        if nullable:
            raise ValueError(f"nothing comes after NULL, so a list cannot be ordered by {nullable}; use coalesce")

    def terms(self, order_by: str) -> list[tuple[ColumnElement[Any], bool]]:
        """Return expressions and whether they descend. Raises `OrderInvalid`."""
        written = order_by.strip() or self.default
        terms = [self._term(term.strip()) for term in written.split(",")] if written else []
        return [*terms, (self.unique, terms[-1][1] if terms else False)]

    def _term(self, written: str) -> tuple[ColumnElement[Any], bool]:
        found = _TERM.fullmatch(written)
        if found is None or found[1] not in self.fields:
            name = found[1] if found else written
            raise OrderInvalid(field=name, nearest=nearest(name, self.fields))
        return self.fields[found[1]], found[2] == "desc"


async def list_page(
    connection: AsyncConnection,
    query: Select[*tuple[Any, ...]],
    request: ListRequest,
    ordering: Ordering,
    *,
    default_size: int = 100,
    max_size: int = 1000,
) -> Page:
    """Run the query for the page that a List request asks for, with one statement.

    Reads page_size, page_token and, where the request has it, order_by. Rows carry the position's values
    after the columns of the query, as the driver gives them. Raises `FieldInvalid`, `OrderInvalid` and
    `PageTokenInvalid`.
    """
    size = _size(request, default_size, max_size)
    arguments = _arguments(request)
    terms = ordering.terms(getattr(request, "order_by", ""))
    if request.page_token:
        query = query.where(_after(terms, _read_token(request.page_token, arguments, len(terms))))
    # As the driver gives them: only those of the last row are needed.
    position = [type_coerce(term, NullType).label(f"position_{number}") for number, (term, _) in enumerate(terms)]
    query = query.add_columns(*position).order_by(*[term.desc() if down else term.asc() for term, down in terms])
    rows = (await connection.execute(query.limit(size + 1))).all()
    if len(rows) <= size:
        return Page(rows, "")
    last = [
        value if (read := result_processor(term.type, connection.dialect)) is None else read(value)
        for value, (term, _) in zip(rows[size - 1][-len(terms) :], terms, strict=True)
    ]
    return Page(rows[:size], _token(last, arguments))


async def all_pages(
    connection: AsyncConnection,
    query: Select[*tuple[Any, ...]],
    request: ListRequest,
    ordering: Ordering,
    *,
    size: int,
) -> AsyncGenerator[Sequence[AnyRow], None]:
    """Run the query once, in the order that a List request asks for, and give the rows in pages of this size.

    The connection is in a transaction.
    """
    terms = ordering.terms(getattr(request, "order_by", ""))
    query = query.order_by(*[term.desc() if down else term.asc() for term, down in terms])
    async with connection.stream(query.execution_options(yield_per=size)) as result:
        async for rows in result.partitions(size):
            yield rows


def _after(terms: Sequence[tuple[ColumnElement[Any], bool]], values: Sequence[Any]) -> ColumnElement[bool]:
    if len({down for _, down in terms}) == 1:
        # One comparison of rows can use an index over all of the columns.
        left = tuple_(*[term for term, _ in terms])
        right = tuple_(*[literal(value, term.type) for value, (term, _) in zip(values, terms, strict=True)])
        return left < right if terms[0][1] else left > right
    (first, down), value = terms[0], values[0]
    beyond = first < value if down else first > value
    return or_(beyond, and_(first == value, _after(terms[1:], values[1:])))


def _size(request: ListRequest, default: int, maximum: int) -> int:
    if request.page_size < 0:
        raise FieldInvalid.of("page_size", "must not be negative; 0 takes the default")
    return min(request.page_size or default, maximum)


def _arguments(request: ListRequest) -> bytes:
    rest = copy.deepcopy(request)
    rest.page_token = ""
    rest.page_size = 0
    return rest.SerializeToString(deterministic=True)


def _token(values: Sequence[Any], arguments: bytes) -> str:
    content = json.dumps([_written(value) for value in values]).encode()
    return base64.urlsafe_b64encode(_check(content, arguments) + content).decode()


def _read_token(token: str, arguments: bytes, count: int) -> list[Any]:
    try:
        raw = base64.b64decode(token, altchars=b"-_", validate=True)
    except ValueError:
        raise PageTokenInvalid from None
    content = raw[_CHECK_BYTES:]
    if raw[:_CHECK_BYTES] != _check(content, arguments):
        raise PageTokenInvalid
    values = [_read(value) for value in json.loads(content)]
    if len(values) != count:
        raise PageTokenInvalid
    return values


def _check(content: bytes, arguments: bytes) -> bytes:
    # Finds mistakes. A forged position shows nothing that another page would not.
    return hashlib.blake2b(content, key=hashlib.sha256(arguments).digest(), digest_size=_CHECK_BYTES).digest()


def _written(value: Any) -> Any:
    return {"time": value.astimezone(UTC).isoformat()} if isinstance(value, datetime) else value


def _read(value: Any) -> Any:
    return datetime.fromisoformat(value["time"]) if isinstance(value, dict) else value
