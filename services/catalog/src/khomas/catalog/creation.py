"""The commit of files: all of a call in one transaction, a constant number of statements."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from graphlib import CycleError, TopologicalSorter
from typing import Any, NoReturn

from sqlalchemy import BigInteger, String, literal, select, union_all
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.catalog.v1 import catalog_service_pb2 as pb
from khomas.api.catalog.v1.file_pb2 import File, Replica
from khomas.catalog.directories import Directories
from khomas.catalog.errors import FileExists, NameIsDirectory, ParentMissing
from khomas.catalog.keys import Keys
from khomas.catalog.membership import Membership
from khomas.catalog.names import check_distinct, check_name, default_path, directory_of
from khomas.catalog.tables import NOT_DELETED, directory, file, file_value, parent, replica
from khomas.kit.boundary.call import current_principal
from khomas.kit.database import Database, in_values, insert_many, insert_new
from khomas.kit.errors import FieldInvalid
from khomas.kit.events import EventLog, NewEvent
from khomas.kit.idempotency import Once
from khomas.kit.ids import new_uids


@dataclass(frozen=True, slots=True)
class _Known:
    """A file that was there before."""

    id: int
    uid: str
    content: tuple[int, str, str]
    state: int


class Creation:
    """Commits files with all that belongs to them."""

    def __init__(
        self, database: Database, once: Once, log: EventLog, keys: Keys, directories: Directories, datasets: Membership
    ) -> None:
        self._database = database
        self._once = once
        self._log = log
        self._keys = keys
        self._directories = directories
        self._datasets = datasets

    async def create(self, request: pb.BatchCreateFilesRequest) -> pb.BatchCreateFilesResponse:
        """Commit the files of a request, or with validate_only only check them."""
        check_files(request.files)
        owner = current_principal().subject
        if not request.validate_only:
            return await self._once(
                request,
                pb.BatchCreateFilesResponse,
                lambda connection: self.commit(connection, owner, request.files, request.datasets),
            )
        try:
            async with self._database.write() as connection:
                answer = await self.commit(connection, owner, request.files, request.datasets)
                _take_back()
        except _TakenBack:
            return answer

    async def commit(
        self, connection: AsyncConnection, owner: str, files: Sequence[File], datasets: Sequence[str] = ()
    ) -> pb.BatchCreateFilesResponse:
        """Commit files in a transaction that is open already."""
        known = await self._known(connection, files)
        new = [one for one in files if not _is_known(one, known)]
        uids = {one.name: known[one.name].uid for one in files if one.name in known}
        ids = {name: one.id for name, one in known.items()}
        if new:
            made = await self._insert(connection, owner, new)
            uids |= {name: uid for name, (_, uid) in made.items()}
            ids |= {name: id_ for name, (id_, _) in made.items()}
            await self._insert_parts(connection, new, ids)
        if datasets:
            members = {one.name: ids[one.name] for one in files}
            await self._datasets.join(connection, owner, datasets, members)
        await self._log.append(connection, [_created(one, uids[one.name]) for one in new])
        return pb.BatchCreateFilesResponse(uids=[uids[one.name] for one in files], existing=len(files) - len(new))

    async def _known(self, connection: AsyncConnection, files: Sequence[File]) -> dict[str, _Known]:
        """Return what exists under the names of files and parents; refuses clashes of files and directories."""
        names = {one.name for one in files}
        parents = {name for one in files for name in one.parents}
        above = self._directories.unknown({directory_of(name) for name in names})
        columns = (file.c.name, file.c.id, file.c.uid, file.c.size_bytes, file.c.adler32, file.c.origin, file.c.state)
        query = union_all(
            select(*columns).where(in_values(file.c.name, names | parents | above), NOT_DELETED),
            select(
                directory.c.path,
                directory.c.id,
                *[literal(None, type_) for type_ in (String(), BigInteger(), String(), String(), BigInteger())],
            ).where(in_values(directory.c.path, names)),
        )
        rows = (await connection.execute(query)).all()
        inner = above | {directory_of(name) for name in names}
        for row in rows:
            if row.uid is None or row.name in inner:
                raise NameIsDirectory(name=row.name)
        if clash := sorted(names & inner):
            raise NameIsDirectory(name=clash[0])
        found = {
            row.name: _Known(row.id, row.uid, (row.size_bytes, row.adler32, row.origin), row.state) for row in rows
        }
        _check_parents(files, names, found)
        return found

    async def _insert(
        self, connection: AsyncConnection, owner: str, files: Sequence[File]
    ) -> dict[str, tuple[int, str]]:
        """Insert the rows of files and set the output fields of the messages; returns id and uid by name."""
        folders = await self._directories.ensure(connection, {directory_of(one.name) for one in files})
        now = datetime.now(UTC)
        uids = new_uids(len(files))
        by_name = sorted(zip(files, uids, strict=True), key=lambda pair: pair[0].name)
        rows = [
            {
                "uid": uid,
                "name": one.name,
                "directory_id": folders[directory_of(one.name)],
                "size_bytes": one.size_bytes,
                "adler32": one.checksums.adler32,
                "sha256": one.checksums.sha256,
                "md5": one.checksums.md5,
                "content_digest": one.checksums.content_digest,
                "origin": one.origin,
                "owner": owner,
                "state": File.STATE_ACTIVE,
                "create_time": now,
                "update_time": now,
                "version": 1,
            }
            for one, uid in by_name
        ]
        made = await insert_new(connection, file, rows, file.c.name, file.c.id, file.c.uid)
        if len(made) < len(files):
            # Somebody committed the same name between our look and our insert.
            raise FileExists(name=sorted({one.name for one in files} - {row.name for row in made})[0])
        for one in files:
            one.owner, one.state, one.etag = owner, File.STATE_ACTIVE, "1"
            one.create_time.FromDatetime(now)
            one.update_time.FromDatetime(now)
        return {row.name: (row.id, row.uid) for row in made}

    async def _insert_parts(self, connection: AsyncConnection, files: Sequence[File], ids: Mapping[str, int]) -> None:
        now = datetime.now(UTC)
        values = [(ids[one.name], one.metadata) for one in files if one.metadata]
        parents = [{"child_id": ids[one.name], "parent_id": ids[name]} for one in files for name in set(one.parents)]
        await insert_many(connection, replica, [row for one in files for row in replica_rows(one, ids[one.name], now)])
        if values:
            await insert_many(connection, file_value, await self._keys.columns(connection, "file_id", values))
        await insert_many(connection, parent, parents)


class _TakenBack(Exception):
    """Ends a transaction in which everything was only tried."""


def _take_back() -> NoReturn:
    raise _TakenBack


def check_files(files: Sequence[File]) -> None:
    """Check what can be seen without the database."""
    check_distinct(one.name for one in files)
    for index, one in enumerate(files):
        check_name(one.name, f"files[{index}].name")
        if not one.checksums.adler32:
            raise FieldInvalid.of(f"files[{index}].checksums.adler32", "is needed to verify the copies")
        elements = [copy.storage_element for copy in one.replicas]
        if len(set(elements)) < len(elements):
            raise FieldInvalid.of(f"files[{index}].replicas", "has two replicas on one StorageElement")
        if one.name in one.parents:
            raise FieldInvalid.of(f"files[{index}].parents", "names the file itself")
    _check_circles({one.name: one.parents for one in files if one.parents})


def _check_circles(parents: Mapping[str, Sequence[str]]) -> None:
    """Refuse files of one call that were made from each other; files of different calls cannot be."""
    try:
        TopologicalSorter(parents).prepare()
    except CycleError as error:
        raise FieldInvalid.of("files.parents", f"go round in a circle: {' from '.join(error.args[1])}") from error


def replica_rows(one: File, id_: int, now: datetime) -> list[dict[str, Any]]:
    """Return the rows of a file's replicas."""
    return [
        {
            "file_id": id_,
            "storage_element": copy.storage_element,
            "path": None if copy.path == default_path(one.name) else copy.path,
            "state": copy.state or Replica.STATE_AVAILABLE,
            "verify_time": copy.verify_time.ToDatetime(tzinfo=UTC) if copy.HasField("verify_time") else now,
        }
        for copy in one.replicas
    ]


def _is_known(one: File, known: Mapping[str, _Known]) -> bool:
    """Tell whether an equal commit was made before; raises FileExists for any other."""
    there = known.get(one.name)
    if there is None:
        return False
    if there.state != File.STATE_ACTIVE or there.content != (one.size_bytes, one.checksums.adler32, one.origin):
        raise FileExists(name=one.name)
    return True


def _check_parents(files: Sequence[File], names: set[str], known: Mapping[str, _Known]) -> None:
    for one in files:
        for name in one.parents:
            there = known.get(name)
            if name not in names and (there is None or there.state != File.STATE_ACTIVE):
                raise ParentMissing(name=one.name, parent=name)


def _created(one: File, uid: str) -> NewEvent:
    one.uid = uid
    for copy in one.replicas:
        copy.state = copy.state or Replica.STATE_AVAILABLE
    return NewEvent("catalog.file.created", one.name, uid, one.origin, one)
