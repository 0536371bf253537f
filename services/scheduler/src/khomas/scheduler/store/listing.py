"""Searches and counts jobs, and the children of arrays with those that have no row."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import JSON, ColumnElement, Select, Text, cast, func, literal, select, type_coerce
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.base import ReadOnlyColumnCollection
from sqlalchemy.types import NullType

from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.api.scheduler.v1.state_pb2 import DesiredState, JobState, Reason
from khomas.kit.database import UtcTime
from khomas.kit.errors import FieldInvalid, PageTokenInvalid
from khomas.kit.filtering import Field, fields, where
from khomas.kit.filtering.compiler import Fields
from khomas.kit.paging import Ordering, list_page
from khomas.scheduler import tables
from khomas.scheduler.engine.candidates import children
from khomas.scheduler.errors import JobNotFound
from khomas.scheduler.messages import reason_name, state_name
from khomas.scheduler.names import uid_of
from khomas.scheduler.records import TRACE_ID, Job, Summary
from khomas.scheduler.store.blueprints import Blueprints
from khomas.scheduler.store.changes import read_jobs

_MAX_PAGE = 10_000
_DEFAULT_PAGE = 100
_TAG = re.compile(r"[a-z][a-z0-9_]{0,62}")
_UNMADE = "unmade."
_job = tables.job.c
Columns = ReadOnlyColumnCollection[str, Any]


class _Tags(Mapping[str, Field]):
    """Any tag is a field."""

    def __init__(self, column: ColumnElement[Any]) -> None:
        self._column = column

    def __getitem__(self, key: str) -> Field:
        if not _TAG.fullmatch(key):
            raise KeyError(key)
        return fields.text(_tag(self._column, key))

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and _TAG.fullmatch(key) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def _tag(column: ColumnElement[Any], key: str) -> ColumnElement[str]:
    value: ColumnElement[str] = type_coerce(column, JSON)[key].as_string()
    return value


def _fields(columns: Columns) -> Fields:
    """What filters may name, in the table or in something like it."""
    texts = ("display_name", "owner", "origin", "backend", "uid")
    times = ("create_time", "update_time", "end_time")
    return {
        "state": fields.enum(columns["state"], JobState),
        "reason": fields.enum(columns["reason"], Reason),
        "desired": fields.enum(columns["desired"], DesiredState),
        "priority": fields.integer(columns["priority"]),
        "tags": _Tags(columns["tags"]),
        "trace_id": fields.text(func.substr(columns["traceparent"], TRACE_ID.start + 1, 32)),
        **{name: fields.text(columns[name]) for name in texts},
        **{name: fields.time(columns[name]) for name in times},
    }


def _shown(name: str) -> ColumnElement[Any]:
    """The column of a field of `Summary`, as the driver gives it."""
    column = _job[name.removeprefix("written_")]
    if isinstance(column.type, UtcTime):
        return type_coerce(column, NullType).label(name)
    return cast(column, Text).label(name) if isinstance(column.type, JSON) else column


_SHOWN = [_shown(name) for name in Summary._fields]
FIELDS = _fields(_job)
_ORDERS: dict[str, ColumnElement[Any]] = {
    "create_time": _job.create_time,
    "update_time": _job.update_time,
    "priority": _job.priority,
}
JOBS = Ordering(_ORDERS, unique=_job.uid, default="create_time desc")
CHILDREN = Ordering({**_ORDERS, "index": _job.index}, unique=_job.index, default="index")


@dataclass(frozen=True, slots=True)
class Listing:
    """Lists jobs."""

    blueprints: Blueprints

    async def page(
        self, connection: AsyncConnection, request: pb.ListJobsRequest
    ) -> tuple[Sequence[Job | Summary], str]:
        """The jobs of a page, and the token of the next one."""
        if request.parent:
            return await self._children(connection, request)
        query = select(*_SHOWN).where(tables.TOP, where(request.filter, FIELDS))
        page = await list_page(connection, query, request, JOBS, default_size=_DEFAULT_PAGE, max_size=_MAX_PAGE)
        return [_row(row) for row in page.rows], page.next_page_token

    async def counts(self, connection: AsyncConnection, request: pb.CountJobsRequest) -> dict[str, int]:
        """How many jobs there are by the value of a field."""
        column, said = _grouping(request.group_by)
        query: Select[Any] = select(column, func.count()).group_by(column)
        array = await self._array(connection, request.parent) if request.parent else None
        condition = where(request.filter, FIELDS)
        counted = query.where(_job.parent == array.uid if array else tables.TOP, condition)
        numbers = {said(value): number for value, number in (await connection.execute(counted)).all()}
        if array is not None and array.unmade and (example := await self._example(connection, array, request.filter)):
            value = said(_value(example, request.group_by))
            numbers[value] = numbers.get(value, 0) + array.unmade
        return numbers

    async def _children(
        self, connection: AsyncConnection, request: pb.ListJobsRequest
    ) -> tuple[Sequence[Job | Summary], str]:
        """Children by index; those without a row come after the others."""
        array = await self._array(connection, request.parent)
        condition = where(request.filter, FIELDS)
        query = select(*_SHOWN).where(_job.parent == array.uid, condition)
        size = min(request.page_size or _DEFAULT_PAGE, _MAX_PAGE)
        if (first := _unmade_from(request)) is None:
            page = await list_page(connection, query, request, CHILDREN, default_size=_DEFAULT_PAGE, max_size=_MAX_PAGE)
            jobs: list[Job | Summary] = [_row(row) for row in page.rows]
            token = page.next_page_token
            if token or not array.unmade or request.order_by.strip() not in ("", "index"):
                return jobs, token
            first = array.made
        else:
            jobs = []
            first = max(first, array.made)
        if await self._example(connection, array, request.filter) is None:
            return jobs, ""
        plan = (await self.blueprints.of(connection, {array.spec}))[array.spec]
        end = min(array.total, first + size - len(jobs))
        jobs += [one.job for one in children(array, plan, first, end)]
        return jobs, f"{_UNMADE}{end}" if end < array.total else ""

    async def _array(self, connection: AsyncConnection, name: str) -> Job:
        found = await read_jobs(connection, [uid_of(name)])
        if not found:
            raise JobNotFound(name=name)
        return found[0]

    async def _example(self, connection: AsyncConnection, array: Job, written: str) -> Job | None:
        """A child without a row, if the filter lets them through: they are all alike but for their index."""
        plan = (await self.blueprints.of(connection, {array.spec}))[array.spec]
        like = children(array, plan, array.made, array.made + 1)[0].job
        values = like.values()
        columns = [literal(values[column.key], column.type).label(column.key) for column in tables.job.columns]
        alike = select(*columns).subquery()
        query = select(alike.c.uid).where(where(written, _fields(alike.c)))
        return like if (await connection.execute(query)).first() is not None else None


def _row(row: Any) -> Summary:
    """A row of a page: the columns of the query come first."""
    return Summary._make(row[: len(_SHOWN)])


def _unmade_from(request: pb.ListJobsRequest) -> int | None:
    """Where a page of children without rows begins; None for the other pages."""
    token = request.page_token
    if not token.startswith(_UNMADE):
        return None
    if not token.removeprefix(_UNMADE).isdecimal():
        raise PageTokenInvalid
    return int(token.removeprefix(_UNMADE))


def _grouping(group_by: str) -> tuple[ColumnElement[Any], Callable[[Any], str]]:
    if group_by.startswith("tags.") and _TAG.fullmatch(group_by.removeprefix("tags.")):
        return _tag(_job.tags, group_by.removeprefix("tags.")), lambda value: value or ""
    if group_by not in _GROUPS:
        names = ", ".join(_GROUPS)
        raise FieldInvalid.of("group_by", f"{group_by!r} is no field to count by; there are {names} and tags.<key>")
    return _job[group_by], _GROUPS[group_by]


_GROUPS: Mapping[str, Callable[[Any], str]] = {
    "state": state_name,
    "reason": reason_name,
    "backend": str,
    "owner": str,
}


def _value(job: Job, group_by: str) -> Any:
    return job.tags.get(group_by.removeprefix("tags.")) if "." in group_by else getattr(job, group_by)
