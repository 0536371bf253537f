"""Observation runs: make known, read, search, change."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import delete, func, insert, literal, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.bookkeeping.v1 import bookkeeping_service_pb2 as pb
from khomas.api.bookkeeping.v1.run_pb2 import QualityChange, Run
from khomas.bookkeeping.errors import RunExists, RunMissing
from khomas.bookkeeping.tables import quality_change, run, run_file
from khomas.kit.boundary.call import current_principal
from khomas.kit.database import AnyRow, Database, in_values, insert_many, insert_new
from khomas.kit.errors import EtagMismatch, FieldInvalid
from khomas.kit.events import EventLog, NewEvent
from khomas.kit.filtering import Fields, fields, where
from khomas.kit.idempotency import Once
from khomas.kit.ids import new_uids
from khomas.kit.paging import Ordering, list_page

_DEFAULT_PAGE = 100
_MAX_PAGE = 10_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_GIVEN = ("name", "target", "period", "start_time", "stop_time", "files", "quality", "comment", "attributes")
_CHANGEABLE = ("quality", "comment", "target", "period", "stop_time", "files", "attributes")
_ORDERING = Ordering(
    {"name": run.c.name, "start_time": func.coalesce(run.c.start_time, literal(_EPOCH, run.c.start_time.type))},
    run.c.id,
    "name",
)
_FIELDS: Fields = {
    "name": fields.text(run.c.name),
    "target": fields.text(run.c.target),
    "period": fields.text(run.c.period),
    "quality": fields.enum(run.c.quality, Run.Quality),
    "start_time": fields.time(run.c.start_time),
    "stop_time": fields.time(run.c.stop_time),
}


class Runs:
    """The rpcs about runs."""

    def __init__(self, database: Database, once: Once, log: EventLog) -> None:
        self._database = database
        self._once = once
        self._log = log

    async def create(self, request: pb.BatchCreateRunsRequest) -> pb.BatchCreateRunsResponse:
        """Make runs known, all or nothing."""
        names = [one.name for one in request.runs]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise FieldInvalid.of("runs", f"{twice} is there twice")
        return await self._once(
            request, pb.BatchCreateRunsResponse, lambda connection: self._create(connection, request.runs)
        )

    async def _create(self, connection: AsyncConnection, wanted: Sequence[Run]) -> pb.BatchCreateRunsResponse:
        now, author = datetime.now(UTC), current_principal().subject
        uids = new_uids(len(wanted))
        new = [_row(one, uid, now) for one, uid in zip(wanted, uids, strict=True)]
        made = await insert_new(connection, run, new, *run.c)
        rows = {row.name: row for row in made}
        if missing := [one.name for one in wanted if one.name not in rows]:
            rows |= await _known(connection, missing, {one.name: _digest(one) for one in wanted})
        fresh = {row.name for row in made}
        created = [one for one in wanted if one.name in fresh]
        ids = {row.name: row.id for row in made}
        await insert_many(connection, run_file, _files(created, ids))
        decided = [one for one in created if one.quality or one.comment]
        await insert_many(connection, quality_change, [_change(ids[one.name], one, author, now) for one in decided])
        await self._log.append(connection, [_event(_message(row)) for row in made])
        return pb.BatchCreateRunsResponse(runs=[_message(rows[one.name]) for one in wanted])

    async def get(self, name: str) -> Run:
        """Read one with the history of its quality."""
        async with self._database.read() as connection:
            return await _with_history(connection, await _found(connection, name))

    async def page(self, request: pb.ListRunsRequest) -> pb.ListRunsResponse:
        """Search runs."""
        query = select(run).where(where(request.filter, _FIELDS))
        async with self._database.read() as connection:
            page = await list_page(
                connection, query, request, _ORDERING, default_size=_DEFAULT_PAGE, max_size=_MAX_PAGE
            )
        return pb.ListRunsResponse(runs=[_message(row) for row in page.rows], next_page_token=page.next_page_token)

    async def update(self, request: pb.UpdateRunRequest) -> Run:
        """Change one; decisions about the quality are kept."""
        for path in request.update_mask.paths:
            if path not in _CHANGEABLE:
                raise FieldInvalid.of("update_mask", f"{path} cannot be changed; {', '.join(_CHANGEABLE)} can")
        return await self._once(request, Run, lambda connection: self._update(connection, request))

    async def _update(self, connection: AsyncConnection, request: pb.UpdateRunRequest) -> Run:
        row = await _found(connection, request.run.name, lock=True)
        if request.run.etag and request.run.etag != str(row.version):
            raise EtagMismatch(name=row.name)
        changed, paths, now = _message(row), set(request.update_mask.paths), datetime.now(UTC)
        for path in paths:
            changed.ClearField(path)  # type: ignore[arg-type]  # checked above
        changed.MergeFrom(_only(request.run, paths))
        values = _values(changed) | {"update_time": now, "version": row.version + 1}
        changing = update(run).values(**values).where(run.c.id == row.id).returning(*run.c)
        after = (await connection.execute(changing)).one()
        if "files" in paths:
            await connection.execute(delete(run_file).where(run_file.c.run_id == row.id))
            await insert_many(connection, run_file, _files([changed], {row.name: row.id}))
        if paths & {"quality", "comment"}:
            decision = _change(row.id, changed, current_principal().subject, now)
            await connection.execute(insert(quality_change).values(**decision))
        await self._log.append(connection, [_event(_message(after))])
        return await _with_history(connection, after)


async def _found(connection: AsyncConnection, name: str, *, lock: bool = False) -> AnyRow:
    query = select(run).where(run.c.name == name)
    row = (await connection.execute(query.with_for_update() if lock else query)).one_or_none()
    if row is None:
        raise RunMissing(name=name)
    return row


async def _known(connection: AsyncConnection, names: Sequence[str], digests: Mapping[str, str]) -> dict[str, AnyRow]:
    """Return runs that were known before. Raises `RunExists` for one with other facts."""
    rows = (await connection.execute(select(run).where(in_values(run.c.name, names)))).all()
    for row in rows:
        if row.digest != digests[row.name]:
            raise RunExists(name=row.name)
    return {row.name: row for row in rows}


async def _with_history(connection: AsyncConnection, row: AnyRow) -> Run:
    shown = _message(row)
    query = select(quality_change).where(quality_change.c.run_id == row.id).order_by(quality_change.c.id)
    for one in await connection.execute(query):
        shown.history.append(QualityChange(author=one.author, time=one.time, quality=one.quality, comment=one.comment))
    return shown


def _only(wanted: Run, paths: Iterable[str]) -> Run:
    """Return a run with only these fields."""
    kept = Run()
    kept.CopyFrom(wanted)
    for name in Run.DESCRIPTOR.fields_by_name:
        if name not in paths:
            kept.ClearField(name)  # type: ignore[arg-type]  # a name from its own descriptor
    return kept


def _digest(wanted: Run) -> str:
    return hashlib.sha256(_only(wanted, _GIVEN).SerializeToString(deterministic=True)).hexdigest()


def _moment(wanted: Run, key: str) -> datetime | None:
    stamp: Timestamp = getattr(wanted, key)
    return stamp.ToDatetime().replace(tzinfo=UTC) if wanted.HasField(key) else None  # type: ignore[arg-type]


def _values(wanted: Run) -> dict[str, Any]:
    return {
        "target": wanted.target,
        "period": wanted.period,
        "start_time": _moment(wanted, "start_time"),
        "stop_time": _moment(wanted, "stop_time"),
        "quality": wanted.quality,
        "comment": wanted.comment,
        "facts": json_format.MessageToDict(_only(wanted, ("files", "attributes"))),
    }


def _row(wanted: Run, uid: str, now: datetime) -> dict[str, Any]:
    times = {"create_time": now, "update_time": now}
    return {"uid": uid, "name": wanted.name, **_values(wanted), "digest": _digest(wanted), **times, "version": 1}


def _files(wanted: Sequence[Run], ids: Mapping[str, int]) -> list[dict[str, Any]]:
    return [{"run_id": ids[one.name], "file": file} for one in wanted for file in dict.fromkeys(one.files)]


def _change(run_id: int, decided: Run, author: str, now: datetime) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "author": author,
        "time": now,
        "quality": decided.quality,
        "comment": decided.comment,
    }


def _message(row: AnyRow) -> Run:
    shown = Run(
        name=row.name,
        target=row.target,
        period=row.period,
        start_time=row.start_time,
        stop_time=row.stop_time,
        quality=row.quality,
        comment=row.comment,
        uid=row.uid,
        create_time=row.create_time,
        update_time=row.update_time,
        etag=str(row.version),
    )
    return json_format.ParseDict(row.facts, shown)


def _event(shown: Run) -> NewEvent:
    return NewEvent("bookkeeping.run.changed", shown.name, shown.uid, "", shown)
