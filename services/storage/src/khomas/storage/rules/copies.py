"""The copies that rules want, in the database: read, written and counted in batches."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any

from sqlalchemy import ColumnElement, Row, String, and_, case, cast, delete, func, or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.storage.v1 import rule_pb2 as pb
from khomas.api.storage.v1 import transfer_pb2
from khomas.kit.database import in_values, rows_table
from khomas.storage.rules.placing import Copy, CopyState
from khomas.storage.rules.tables import rule_copy
from khomas.storage.tables import deletion, transfer

_COLUMNS = tuple(field.name for field in fields(Copy))
_KEY = ("rule_uid", "file_uid", "number")
_ENDED = (transfer_pb2.Transfer.STATE_FAILED, transfer_pb2.Transfer.STATE_CANCELLED)
_FINAL = (*_ENDED, transfer_pb2.Transfer.STATE_SUCCEEDED)


def copy_of(row: Row[Any]) -> Copy:
    """Return a row as a record."""
    return Copy(**{name: getattr(row, name) for name in _COLUMNS})


async def of_files(connection: AsyncConnection, rule_uid: str, file_uids: Collection[str]) -> dict[str, list[Copy]]:
    """Read the copies of files that a rule wants, by file."""
    found: dict[str, list[Copy]] = {}
    query = select(rule_copy).where(rule_copy.c.rule_uid == rule_uid, in_values(rule_copy.c.file_uid, file_uids))
    for row in (await connection.execute(query)).all():
        found.setdefault(row.file_uid, []).append(copy_of(row))
    return found


async def write(connection: AsyncConnection, copies: Sequence[tuple[str, Copy]]) -> None:
    """Insert or replace copies of rules, with one statement."""
    if not copies:
        return
    columns = ("rule_uid", *_COLUMNS)
    types = {name: rule_copy.c[name].type for name in columns}
    rows = [(rule_uid, *[getattr(copy, name) for name in _COLUMNS]) for rule_uid, copy in copies]
    source = rows_table(connection, types, rows)
    insert = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(rule_copy)
    # SQLite takes "ON CONFLICT" after a bare FROM for the condition of a join, hence the WHERE.
    given = select(*[source.c[name] for name in columns]).where(source.c.number >= 0)
    statement = insert.from_select(list(columns), given, include_defaults=False)
    new = {name: statement.excluded[name] for name in columns if name not in _KEY}
    await connection.execute(statement.on_conflict_do_update(index_elements=list(_KEY), set_=new))


async def drop(connection: AsyncConnection, rule_uid: str, copies: Sequence[Copy]) -> list[str]:
    """Release copies, with one statement; return the transfers that nobody wants any more."""
    if not copies:
        return []
    # The first condition finds rows by their index, the second one tells which of a file's copies.
    files = in_values(rule_copy.c.file_uid, {copy.file_uid for copy in copies})
    key = rule_copy.c.file_uid + "/" + cast(rule_copy.c.number, String)
    which = in_values(key, [f"{copy.file_uid}/{copy.number}" for copy in copies])
    return await drop_where(connection, rule_copy.c.rule_uid == rule_uid, files, which)


async def drop_where(connection: AsyncConnection, *conditions: ColumnElement[bool]) -> list[str]:
    """Release copies; return the transfers that were making them."""
    statement = delete(rule_copy).where(*conditions).returning(rule_copy.c.transfer_uid, rule_copy.c.state)
    rows = (await connection.execute(statement)).all()
    return [row.transfer_uid for row in rows if row.transfer_uid and row.state == CopyState.REPLICATING]


async def being_deleted(connection: AsyncConnection, file_uids: Collection[str]) -> set[tuple[str, str]]:
    """Return the (file, StorageElement) pairs whose replica is about to be deleted."""
    waiting = deletion.c.state == transfer_pb2.Deletion.STATE_WAITING
    query = select(deletion.c.file_uid, deletion.c.storage_element).where(
        in_values(deletion.c.file_uid, file_uids), waiting
    )
    return {(row.file_uid, row.storage_element) for row in (await connection.execute(query)).all()}


async def failed(connection: AsyncConnection, rule_uids: Collection[str], limit: int) -> Sequence[Row[Any]]:
    """Read copies whose transfer was given up, with what it said last."""
    query = (
        select(rule_copy, transfer.c.message.label("error"))
        .join(transfer, transfer.c.uid == rule_copy.c.transfer_uid)
        .where(
            in_values(rule_copy.c.rule_uid, rule_uids),
            rule_copy.c.state == CopyState.REPLICATING,
            transfer.c.state.in_(_ENDED),
        )
        .limit(limit)
    )
    return (await connection.execute(query)).all()


def without_transfer() -> ColumnElement[bool]:
    """Say that a copy is to come by a transfer, and that this one is not under way any more."""
    under_way = select(transfer.c.uid).where(
        transfer.c.uid == rule_copy.c.transfer_uid, transfer.c.state.not_in(_FINAL)
    )
    waits = and_(rule_copy.c.state == CopyState.REPLICATING, rule_copy.c.transfer_uid != "")
    return and_(waits, ~under_way.exists())


async def rules_with_failures(connection: AsyncConnection) -> list[str]:
    """Return the rules that have a copy whose transfer was given up."""
    query = (
        select(rule_copy.c.rule_uid)
        .join(transfer, transfer.c.uid == rule_copy.c.transfer_uid)
        .where(transfer.c.state.in_(_ENDED), rule_copy.c.state == CopyState.REPLICATING)
        .distinct()
    )
    return list((await connection.scalars(query)).all())


async def counts(connection: AsyncConnection, rule_uid: str) -> pb.RuleCounts:
    """Count the copies of a rule."""
    columns = rule_copy.c
    ok, stuck = columns.state == CopyState.OK, columns.state == CopyState.STUCK

    def number(condition: ColumnElement[bool]) -> ColumnElement[int]:
        return func.coalesce(func.sum(case((condition, 1), else_=0)), 0)

    first = select(columns.file_uid, func.max(columns.size_bytes).label("size_bytes")).where(
        columns.rule_uid == rule_uid
    )
    files = first.group_by(columns.file_uid).subquery()
    query = select(
        select(func.count()).select_from(files).scalar_subquery(),
        select(func.coalesce(func.sum(files.c.size_bytes), 0)).scalar_subquery(),
        number(ok),
        number(or_(columns.state == CopyState.PENDING, columns.state == CopyState.REPLICATING)),
        number(stuck),
        func.coalesce(func.sum(case((ok, 0), else_=columns.size_bytes)), 0),
    ).where(columns.rule_uid == rule_uid)
    row = (await connection.execute(query)).one()
    return pb.RuleCounts(
        files=int(row[0]),
        bytes=int(row[1]),
        ok_copies=int(row[2]),
        replicating_copies=int(row[3]),
        stuck_copies=int(row[4]),
        missing_bytes=int(row[5]),
    )


async def reasons(connection: AsyncConnection, rule_uid: str) -> Mapping[int, tuple[int, str, str]]:
    """Count the stuck copies of a rule by reason, each with one of the files and one of the messages."""
    columns = rule_copy.c
    query = (
        select(columns.reason, func.count(), func.min(columns.file), func.max(columns.message))
        .where(columns.rule_uid == rule_uid, columns.state == CopyState.STUCK)
        .group_by(columns.reason)
    )
    rows = (await connection.execute(query)).all()
    return {int(reason): (int(count), str(file), str(message)) for reason, count, file, message in rows}
