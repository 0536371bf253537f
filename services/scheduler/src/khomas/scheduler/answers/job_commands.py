"""The call that lists what was said to batch systems about a job."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import ColumnElement, Select, and_, func, or_, select, union_all

from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.api.scheduler.v1.job_command_pb2 import JobCommand
from khomas.kit.database import AnyRow, Database
from khomas.kit.paging import Ordering, list_page
from khomas.scheduler import tables
from khomas.scheduler.errors import JobNotFound
from khomas.scheduler.names import uid_of
from khomas.scheduler.store.lookup import Lookup

_attempt, _command, _link = tables.attempt.c, tables.command.c, tables.attempt_call.c
_ORDER = Ordering({}, unique=_command.uid)


@dataclass(frozen=True, slots=True)
class JobCommands:
    """Answers what was said about a job."""

    database: Database
    lookup: Lookup

    async def page(self, request: pb.ListJobCommandsRequest) -> pb.ListJobCommandsResponse:
        """The commands of a page. Raises `JobNotFound`."""
        uid = uid_of(request.name)
        async with self.database.read() as connection:
            if uid not in await self.lookup.read(connection, [uid]):
                raise JobNotFound(name=request.name)
            query = _of(uid, request.attempt)
            page = await list_page(connection, query, request, _ORDER)
        return pb.ListJobCommandsResponse(
            commands=[_message(row) for row in page.rows], next_page_token=page.next_page_token
        )


def _of(job: str, attempt: int) -> Select[Any]:
    """Commands with the number of the attempt that each is about."""
    mine = and_(_attempt.job == job, _attempt.number == attempt if attempt else _attempt.number > 0)
    ways = union_all(_calls(mine), _failed_looks(mine), _last_polls(mine)).subquery()
    found = select(ways.c.uid, func.min(ways.c.number).label("number")).group_by(ways.c.uid).subquery()
    return select(tables.command, found.c.number).join(found, found.c.uid == _command.uid)


def _calls(mine: ColumnElement[bool]) -> Select[Any]:
    """What the calls about its attempts ran, but for what names another one."""
    query = select(_command.uid, _attempt.number).select_from(tables.attempt)
    query = query.join(tables.attempt_call, _link.attempt == _attempt.uid)
    query = query.join(tables.command, _command.call == _link.call)
    return query.where(mine, or_(_command.attempt == "", _command.attempt == _attempt.uid))


def _looks(mine: ColumnElement[bool]) -> Select[Any]:
    """Looks at its backends while an attempt was there."""
    during = and_(_command.start_time >= _attempt.create_time, _command.start_time <= _end())
    query = select(_command.uid, _attempt.number).select_from(tables.attempt)
    query = query.join(tables.command, and_(_command.backend == _attempt.backend, during))
    return query.where(mine, tables.LOOK)


def _end() -> ColumnElement[datetime]:
    # A little later than now: an attempt that goes on.
    return func.coalesce(_attempt.end_time, datetime.now(UTC) + timedelta(minutes=1), type_=_attempt.end_time.type)


def _failed_looks(mine: ColumnElement[bool]) -> Select[Any]:
    return _looks(mine).where(_command.failed.is_(True))


def _last_polls(mine: ColumnElement[bool]) -> Select[Any]:
    """The latest look at each attempt."""
    polls = _looks(mine).where(_command.operation == JobCommand.OPERATION_POLL)
    return polls.with_only_columns(func.max(_command.uid), _attempt.number).group_by(_attempt.number)


def _message(row: AnyRow) -> JobCommand:
    message = JobCommand(
        uid=row.uid,
        attempt=row.number,
        backend=f"backends/{row.backend}",
        operation=row.operation,
        argv=row.argv,
        exit_code=row.exit_code,
        failed=row.failed,
        stderr=row.stderr,
        start_time=Timestamp(),
        duration=Duration(),
        jobs=row.jobs,
    )
    message.start_time.FromDatetime(row.start_time)
    message.duration.FromMicroseconds(row.duration_us)
    return message
