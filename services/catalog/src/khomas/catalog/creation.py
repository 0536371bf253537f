"""The commit of files: all of a call in one transaction, a constant number of statements."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from graphlib import CycleError, TopologicalSorter
from typing import Any, NoReturn, TypeVar

from google.protobuf.any_pb2 import Any as AnyMessage
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.catalog.v1 import catalog_service_pb2 as pb
from khomas.api.catalog.v1.file_pb2 import File, Replica
from khomas.catalog.directories import Directories
from khomas.catalog.errors import FileExists, NameIsDirectory, ParentMissing
from khomas.catalog.keys import VALUE, Keys
from khomas.catalog.known import Known, KnownFile, look
from khomas.catalog.membership import Member, Membership
from khomas.catalog.names import check_distinct, check_name, default_path, directory_of
from khomas.catalog.tables import file, file_value, parent, replica
from khomas.kit.boundary.call import current_owner
from khomas.kit.database import Database, Rows
from khomas.kit.errors import FieldInvalid
from khomas.kit.events import EventLog, NewEvent
from khomas.kit.events.table import TYPE_PREFIX
from khomas.kit.idempotency import Once
from khomas.kit.ids import new_uids

Answer = TypeVar("Answer")
_TRIES = 5


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
        owner = current_owner(request.owner)
        check_files(request.files)
        work = partial(
            self.commit,
            owner=owner,
            files=request.files,
            datasets=request.datasets,
            any_origin=request.any_origin,
        )
        if not request.validate_only:
            return await again_if_overtaken(lambda: self._once(request, pb.BatchCreateFilesResponse, work))
        try:
            async with self._database.write() as connection:
                answer = await work(connection)
                _take_back()
        except _TakenBack:
            return answer

    async def commit(
        self,
        connection: AsyncConnection,
        owner: str,
        files: Sequence[File],
        datasets: Sequence[str] = (),
        *,
        any_origin: bool = False,
    ) -> pb.BatchCreateFilesResponse:
        """Commit files, which `check_files` has seen, in a transaction that is open already.

        Their rows are inserted at its end, which raises IntegrityError when another transaction has taken one of the
        names meanwhile: try it again.
        """
        names, folders = {one.name for one in files}, {directory_of(one.name) for one in files}
        unknown = self._directories.unknown(folders)
        parents = {name for one in files for name in one.parents}
        known = await look(connection, names | parents | unknown, names | unknown, len(files))
        _refuse_clashes(names, folders | unknown, known)
        _check_parents(files, names, known.files)
        # Rows in the order of the names lie side by side in every index.
        fresh = (one for one in files if not _is_known(one, known.files, any_origin=any_origin))
        new = sorted(fresh, key=lambda one: one.name)
        uids = {name: one.uid for name, one in known.files.items()} | dict(
            zip((one.name for one in new), new_uids(len(new)), strict=True)
        )
        ids = {name: one.id for name, one in known.files.items()} | dict(
            zip((one.name for one in new), known.file_ids, strict=False)
        )
        now = datetime.now(UTC)
        events = _created(new, uids, owner, now)
        parts = await self._parts(connection, new, ids, uids, owner, known, unknown, now)
        if datasets:
            members = {one.name: Member(ids[one.name], one.size_bytes) for one in files}
            existing = {name: one for name, one in members.items() if name in known.files}
            joined, told = await self._datasets.join(
                connection, owner, datasets, {name: members[name] for name in members.keys() - existing}, existing
            )
            parts, events = [*parts, joined], [*events, *told]
        for part in parts:
            self._database.insert_at_end(connection, part)
        await self._log.append(connection, events)
        return pb.BatchCreateFilesResponse(uids=[uids[one.name] for one in files], existing=len(files) - len(new))

    async def _parts(
        self,
        connection: AsyncConnection,
        files: Sequence[File],
        ids: Mapping[str, int],
        uids: Mapping[str, str],
        owner: str,
        known: Known,
        unknown: set[str],
        now: datetime,
    ) -> list[Rows]:
        """Return the rows of new files and all that belongs to them."""
        folders, directories = self._directories.made(connection, unknown, known.directories, known.directory_ids)
        values = [(ids[one.name], one.metadata) for one in files if one.metadata]
        return [
            directories,
            _file_rows(files, ids, uids, folders, owner, now),
            Rows(replica, REPLICA, [row for one in files for row in replica_rows(one, ids[one.name], now)]),
            Rows(file_value, ("file_id", *VALUE), await self._keys.rows(connection, values) if values else []),
            Rows(
                parent,
                ("child_id", "parent_id"),
                [(ids[one.name], ids[name]) for one in files if one.parents for name in set(one.parents)],
            ),
        ]


class _TakenBack(Exception):
    """Ends a transaction in which everything was only tried."""


def _take_back() -> NoReturn:
    raise _TakenBack


async def again_if_overtaken(commit: Callable[[], Awaitable[Answer]]) -> Answer:
    """Commit again when another transaction has just taken the name of a file or directory: now it can be seen."""
    for _ in range(_TRIES - 1):
        try:
            return await commit()
        except IntegrityError:
            continue
    return await commit()


def check_files(files: Sequence[File]) -> None:
    """Check what can be seen without the database, and fill in what may be left out."""
    check_distinct(one.name for one in files)
    for index, one in enumerate(files):
        check_name(one.name, f"files[{index}].name")
        if not one.checksums.adler32:
            raise FieldInvalid.of(f"files[{index}].checksums.adler32", "is needed to verify the copies")
        for copy in one.replicas:
            if not copy.state:
                copy.state = Replica.STATE_AVAILABLE
        if len({copy.storage_element for copy in one.replicas}) < len(one.replicas):
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


REPLICA = ("file_id", "storage_element", "path", "state", "verify_time")


def replica_rows(one: File, id_: int, now: datetime) -> list[tuple[Any, ...]]:
    """Return the rows of a file's replicas, in the order of REPLICA."""
    usual = default_path(one.name)
    return [
        (
            id_,
            copy.storage_element,
            None if copy.path == usual else copy.path,
            copy.state or Replica.STATE_AVAILABLE,
            copy.verify_time.ToDatetime(tzinfo=UTC) if copy.HasField("verify_time") else now,
        )
        for copy in one.replicas
    ]


def _file_rows(
    files: Sequence[File],
    ids: Mapping[str, int],
    uids: Mapping[str, str],
    folders: Mapping[str, int],
    owner: str,
    now: datetime,
) -> Rows:
    rows = []
    for one in files:
        name, sums = one.name, one.checksums
        folder = folders[directory_of(name)]
        sizes = (one.size_bytes, sums.adler32, sums.sha256, sums.md5, sums.content_digest, one.origin)
        rows.append((ids[name], uids[name], name, folder, *sizes))
    return Rows(
        file,
        ("id", "uid", "name", "directory_id", *("size_bytes", "adler32", "sha256", "md5", "content_digest", "origin")),
        rows,
        {"owner": owner, "state": File.STATE_ACTIVE, "create_time": now, "update_time": now, "version": 1},
    )


def _is_known(one: File, known: Mapping[str, KnownFile], *, any_origin: bool) -> bool:
    """Tell whether an equal commit was made before; raises FileExists for any other."""
    there = known.get(one.name)
    if there is None:
        return False
    equal = there.content == (one.size_bytes, one.checksums.adler32) and (any_origin or there.origin == one.origin)
    if there.state != File.STATE_ACTIVE or not equal:
        raise FileExists(name=one.name)
    return True


def _check_parents(files: Sequence[File], names: set[str], known: Mapping[str, KnownFile]) -> None:
    for one in files:
        for name in one.parents:
            there = known.get(name)
            if name not in names and (there is None or there.state != File.STATE_ACTIVE):
                raise ParentMissing(name=one.name, parent=name)


def _refuse_clashes(names: set[str], folders: set[str], known: Known) -> None:
    """Refuse names that are a file here and a directory there."""
    clashes = (names & known.directories.keys()) | (folders & known.files.keys()) | (names & folders)
    if clashes:
        raise NameIsDirectory(name=min(clashes))


def _created(files: Sequence[File], uids: Mapping[str, str], owner: str, now: datetime) -> list[NewEvent]:
    """Return the events of new files, each with the whole file as it is now."""
    said = File(owner=owner, state=File.STATE_ACTIVE, etag="1")
    said.create_time.FromDatetime(now)
    said.update_time.FromDatetime(now)
    fresh = said.SerializeToString()
    url = TYPE_PREFIX + File.DESCRIPTOR.full_name
    events = []
    for one in files:
        uid = uids[one.name]
        # Messages one after the other are one with the fields of all.
        content = one.SerializeToString() + fresh + File(uid=uid).SerializeToString()
        packed = AnyMessage(type_url=url, value=content)
        events.append(NewEvent("catalog.file.created", one.name, uid, one.origin, packed))
    return events
