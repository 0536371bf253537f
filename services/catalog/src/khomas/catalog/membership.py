"""Which files are in which dataset, and since when."""

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, and_, literal, or_, select, true, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.catalog.v1 import catalog_service_pb2 as pb
from khomas.api.catalog.v1.dataset_pb2 import Dataset
from khomas.catalog.errors import DatasetClosed, DatasetMissing
from khomas.catalog.names import check_dataset
from khomas.catalog.tables import ACTIVE, dataset, dataset_file, file
from khomas.kit.database import AnyRow, Database, Rows, in_values, insert_new, rows_table
from khomas.kit.errors import FieldInvalid
from khomas.kit.events import EventLog, NewEvent
from khomas.kit.ids import new_uids

# What moves with one call is told by several events, or one alone could be larger than a message may be.
_MAX_MOVED = 1000
# Beyond, SQLite goes on with fractions, which nobody can read as a size.
_MAX_SIZE = 2**63 - 1


class Member(NamedTuple):
    """A file as datasets count it."""

    id: int
    size_bytes: int


class Candidate(NamedTuple):
    """A file that may join or leave a dataset."""

    id: int
    size_bytes: int
    inside: bool


Members = Mapping[str, Member]


def is_member(dataset_id: ColumnElement[int], at: datetime | None) -> ColumnElement[bool]:
    """Return the condition that a row of dataset_file was a membership at a moment; None = now."""
    columns = dataset_file.c
    inside = columns.dataset_id == dataset_id
    if at is None:
        return and_(inside, columns.remove_time.is_(None))
    return and_(inside, columns.add_time <= at, or_(columns.remove_time.is_(None), columns.remove_time > at))


class Membership:
    """Adds files to datasets and takes them out."""

    def __init__(self, database: Database, log: EventLog) -> None:
        self._database = database
        self._log = log

    async def join(
        self, connection: AsyncConnection, owner: str, names: Sequence[str], new: Members, existing: Members
    ) -> tuple[Rows, list[NewEvent]]:
        """Make files members of open datasets; a dataset that is missing is made.

        The counts of the datasets are changed at once. Returns what is to be inserted with the files and told.
        """
        for name in names:
            check_dataset(name, "datasets")
        now = datetime.now(UTC)
        wanted = sorted(set(names))
        made = [
            new_row(uid, Dataset(name=name), owner, now)
            for uid, name in zip(new_uids(len(wanted)), wanted, strict=True)
        ]
        before = await self._members(connection, made, existing) if existing else {}
        added = {
            name: {**new, **{lfn: one for lfn, one in existing.items() if one.id not in before.get(name, ())}}
            for name in wanted
        }
        for name, empty in zip(wanted, made, strict=True):
            members = added[name].values()
            empty |= {"file_count": len(members), "size_bytes": sum(one.size_bytes for one in members)}
            _check_size(name, sum(one.size_bytes for one in members))
        rows = await _add_counts(connection, made)
        uids = {one["uid"] for one in made}
        events = [changed("created", row) for row in rows if row.uid in uids]
        for row in rows:
            events += moves(row.name, row.uid, row.origin, sorted(added[row.name]), [])
        ids = sorted((row.id, one.id) for row in rows for one in added[row.name].values())
        return Rows(dataset_file, ("dataset_id", "file_id"), ids, {"add_time": now}), events

    async def _members(
        self, connection: AsyncConnection, rows: Sequence[Mapping[str, Any]], files: Members
    ) -> dict[str, set[int]]:
        """Return which of the files are in which dataset already; nobody else adds to these datasets meanwhile.

        Those that are missing are made, empty: what does not exist cannot be locked.
        """
        query = select(dataset.c.id, dataset.c.name).where(in_values(dataset.c.name, [row["name"] for row in rows]))
        query = query.order_by(dataset.c.name).with_for_update()
        known = {row.id: row.name for row in await connection.execute(query)}
        if len(known) < len(rows):
            await insert_new(connection, dataset, rows, dataset.c.id)
            known = {row.id: row.name for row in await connection.execute(query)}
        inside = select(dataset_file.c.dataset_id, dataset_file.c.file_id).where(
            in_values(dataset_file.c.dataset_id, known.keys()),
            in_values(dataset_file.c.file_id, [one.id for one in files.values()]),
            dataset_file.c.remove_time.is_(None),
        )
        found: dict[str, set[int]] = {}
        for row in await connection.execute(inside):
            found.setdefault(known[row.dataset_id], set()).add(row.file_id)
        return found

    async def locked(self, connection: AsyncConnection, names: Sequence[str]) -> Sequence[AnyRow]:
        """Return datasets to change, in order of name; nobody else changes them before the end of the transaction."""
        query = select(dataset).where(in_values(dataset.c.name, set(names))).order_by(dataset.c.name).with_for_update()
        rows = (await connection.execute(query)).all()
        if missing := sorted(set(names) - {row.name for row in rows}):
            raise DatasetMissing(name=missing[0])
        for row in rows:
            if row.state == Dataset.STATE_CLOSED:
                raise DatasetClosed(name=row.name)
        return rows

    async def change(
        self,
        connection: AsyncConnection,
        row: AnyRow,
        *,
        add: Mapping[str, Candidate] | None = None,
        remove: Mapping[str, Candidate] | None = None,
    ) -> AnyRow:
        """Add and remove files, tell what really changed, and return the dataset's new row."""
        added = {name: one for name, one in (add or {}).items() if not one.inside}
        removed = {name: one for name, one in (remove or {}).items() if one.inside}
        if not added and not removed:
            return row
        now = datetime.now(UTC)
        new = sorted((row.id, one.id) for one in added.values())
        self._database.insert_at_end(connection, Rows(dataset_file, ("dataset_id", "file_id"), new, {"add_time": now}))
        if removed:
            gone = is_member(row.id, None) & in_values(dataset_file.c.file_id, {one.id for one in removed.values()})
            await connection.execute(update(dataset_file).values(remove_time=now).where(gone))
        # Count and size stand beside the dataset, so that a list of datasets reads no memberships.
        moved = sum(one.size_bytes for one in added.values()) - sum(one.size_bytes for one in removed.values())
        _check_size(row.name, row.size_bytes + moved)
        counting = (
            update(dataset)
            .values(
                file_count=dataset.c.file_count + len(added) - len(removed),
                size_bytes=dataset.c.size_bytes + moved,
                update_time=now,
                version=dataset.c.version + 1,
            )
            .where(dataset.c.id == row.id)
            .returning(*dataset.c)
        )
        await self._log.append(connection, moves(row.name, row.uid, row.origin, sorted(added), sorted(removed)))
        return (await connection.execute(counting)).one()


async def _add_counts(connection: AsyncConnection, rows: Sequence[Mapping[str, Any]]) -> Sequence[AnyRow]:
    """Make datasets, or add to the counts of those that exist; these are locked until the end of the transaction."""
    types = {key: dataset.c[key].type for key in rows[0]}
    source = rows_table(connection, types, [tuple(row.values()) for row in rows])
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    # The WHERE keeps SQLite from reading ON CONFLICT as the condition of a join.
    statement = insert(dataset).from_select([*types], select(*source.c).where(true()), include_defaults=False)
    new = statement.excluded
    adding = statement.on_conflict_do_update(
        index_elements=["name"],
        set_={
            "file_count": dataset.c.file_count + new.file_count,
            "size_bytes": dataset.c.size_bytes + new.size_bytes,
            "update_time": new.update_time,
            "version": dataset.c.version + 1,
        },
        where=and_(dataset.c.state == Dataset.STATE_OPEN, dataset.c.size_bytes <= _MAX_SIZE - new.size_bytes),
    )
    found = (await connection.execute(adding.returning(*dataset.c))).all()
    done = {row.name for row in found}
    if left := {row["name"]: row["size_bytes"] for row in rows if row["name"] not in done}:
        for row in await connection.execute(select(dataset).where(in_values(dataset.c.name, left))):
            if row.state == Dataset.STATE_OPEN:
                _check_size(row.name, row.size_bytes + left[row.name])
        raise DatasetClosed(name=min(left))
    return found


def _check_size(name: str, size_bytes: int) -> None:
    if size_bytes > _MAX_SIZE:
        raise FieldInvalid.of("size_bytes", f"no dataset has more than 2^63 bytes, as {name} would; look at the sizes")


async def candidates(connection: AsyncConnection, dataset_id: int, names: Collection[str]) -> dict[str, Candidate]:
    """Return active files by LFN and whether they are in a dataset; others are missing from the answer."""
    inside = and_(dataset_file.c.file_id == file.c.id, is_member(literal(dataset_id), None))
    query = (
        select(file.c.name, file.c.id, file.c.size_bytes, dataset_file.c.file_id.is_not(None).label("inside"))
        .outerjoin_from(file, dataset_file, inside)
        .where(in_values(file.c.name, names), ACTIVE)
    )
    return {row.name: Candidate(row.id, row.size_bytes, row.inside) for row in await connection.execute(query)}


def new_row(uid: str, wanted: Dataset, owner: str, now: datetime) -> dict[str, object]:
    """Return the row of a new, empty dataset."""
    return {
        "uid": uid,
        "name": wanted.name,
        "description": wanted.description,
        "origin": wanted.origin,
        "owner": owner,
        "state": Dataset.STATE_OPEN,
        "file_count": 0,
        "size_bytes": 0,
        "create_time": now,
        "update_time": now,
        "version": 1,
    }


def dataset_proto(row: AnyRow) -> Dataset:
    """Return a dataset as callers see it, without metadata."""
    message = Dataset(
        name=row.name,
        description=row.description,
        origin=row.origin,
        uid=row.uid,
        state=Dataset.State.ValueType(row.state),
        file_count=row.file_count,
        size_bytes=row.size_bytes,
        create_time=row.create_time,
        update_time=row.update_time,
        owner=row.owner,
        etag=str(row.version),
    )
    if row.close_time is not None:
        message.close_time.FromDatetime(row.close_time)
    return message


def changed(verb: str, row: AnyRow) -> NewEvent:
    """Return the event of a change of a dataset."""
    return NewEvent(f"catalog.dataset.{verb}", row.name, row.uid, row.origin, dataset_proto(row))


def moves(name: str, uid: str, origin: str, added: Sequence[str], removed: Sequence[str]) -> list[NewEvent]:
    """Return the events of files that joined and left a dataset."""
    changes = [("files_added", pb.DatasetChange(dataset=name, added=part)) for part in _parts(added)]
    changes += [("files_removed", pb.DatasetChange(dataset=name, removed=part)) for part in _parts(removed)]
    return [NewEvent(f"catalog.dataset.{verb}", name, uid, origin, change) for verb, change in changes]


def _parts(names: Sequence[str]) -> list[Sequence[str]]:
    return [names[start : start + _MAX_MOVED] for start in range(0, len(names), _MAX_MOVED)]
