"""Reading files: by name, by search, by directory."""

from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Select, and_, exists, literal, or_, select, union_all
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.catalog.v1 import catalog_service_pb2 as pb
from khomas.api.catalog.v1.file_pb2 import DirectoryEntry, File
from khomas.catalog.details import FILE, REPLICA, add_replica, add_rest, complete, file_proto
from khomas.catalog.errors import DatasetMissing, FileMissing
from khomas.catalog.keys import Keys
from khomas.catalog.membership import is_member
from khomas.catalog.searching import asks_for, below, file_fields, in_directory, ordering
from khomas.catalog.tables import ACTIVE, dataset, dataset_file, directory, file, replica
from khomas.kit.boundary.status import status_of
from khomas.kit.database import Database, Prepared, in_values, values_param
from khomas.kit.filtering import where
from khomas.kit.paging import Ordering, all_pages, list_page

BY_UID = "files/"
_STREAM_PAGE = 1000


def _get(with_uids: bool, with_replicas: bool) -> Prepared:
    wanted = and_(values_param(file.c.name, "names"), ACTIVE)
    if with_uids:
        wanted = or_(wanted, values_param(file.c.uid, "uids"))
    if not with_replicas:
        return Prepared(select(*FILE).where(wanted))
    joined = file.outerjoin(replica, replica.c.file_id == file.c.id)
    query = select(*FILE, *REPLICA).select_from(joined).where(wanted)
    return Prepared(query.order_by(file.c.id, replica.c.storage_element))


_GET = {(uids, replicas): _get(uids, replicas) for uids in (False, True) for replicas in (False, True)}


class Files:
    """The reading rpcs about files."""

    def __init__(self, database: Database, keys: Keys) -> None:
        self._database = database
        self._keys = keys

    async def get(self, request: pb.BatchGetFilesRequest) -> pb.BatchGetFilesResponse:
        """Read files by LFN or "files/{uid}"."""
        uids = list({name.removeprefix(BY_UID) for name in request.names if name.startswith(BY_UID)})
        names = list({name for name in request.names if not name.startswith(BY_UID)})
        query = _GET[bool(uids), request.view != pb.FILE_VIEW_BASIC]
        async with self._database.read() as connection:
            rows = await query.rows(connection, names=names, **({"uids": uids} if uids else {}))
            found = _with_replicas(rows)
            await add_rest(connection, found, request.view)
        results = {one.name: one for one in found.values() if one.state == File.STATE_ACTIVE}
        if uids:
            results |= {BY_UID + one.uid: one for one in found.values()}
        return pb.BatchGetFilesResponse(results=[_result(name, results.get(name)) for name in request.names])

    async def page(self, request: pb.ListFilesRequest) -> pb.ListFilesResponse:
        """Search, a page at a time."""
        async with self._database.read() as connection:
            query, order = await self._search(connection, request)
            return await _page(connection, query, request, order)

    async def stream(self, request: pb.ListFilesRequest) -> AsyncIterator[pb.ListFilesResponse]:
        """Search, everything, as of one snapshot, with one cursor."""
        async with self._database.snapshot() as connection:
            query, order = await self._search(connection, request)
            async for rows in all_pages(connection, query, request, order, size=_STREAM_PAGE):
                answer = pb.ListFilesResponse()
                await complete(connection, rows, request.view, answer.files.add)
                yield answer

    async def list_directory(self, request: pb.ListDirectoryRequest) -> pb.ListDirectoryResponse:
        """List what lies directly in a directory, files and directories together by name."""
        path = request.directory.rstrip("/") or "/"
        above = select(directory.c.id).where(directory.c.path == path).scalar_subquery()
        inside = union_all(
            select(directory.c.path.label("name"), literal(0).label("file_id")).where(
                directory.c.parent_id == above, _has_files()
            ),
            select(file.c.name, file.c.id).where(in_directory(path), ACTIVE),
        ).subquery()
        order = Ordering({"name": inside.c.name}, inside.c.file_id, "name")
        async with self._database.read() as connection:
            page = await list_page(connection, select(inside), request, order, default_size=1000, max_size=10_000)
            ids = [row.file_id for row in page.rows if row.file_id]
            rows = (await connection.execute(select(*FILE).where(in_values(file.c.id, ids)))).all()
            files = {one.name: one for one in await complete(connection, rows, pb.FILE_VIEW_REPLICAS)}
        return pb.ListDirectoryResponse(
            entries=[
                DirectoryEntry(name=row.name, directory=not row.file_id, file=files.get(row.name)) for row in page.rows
            ],
            next_page_token=page.next_page_token,
        )

    async def _search(
        self, connection: AsyncConnection, request: pb.ListFilesRequest
    ) -> tuple[Select[*tuple[Any, ...]], Ordering]:
        keys = await self._keys.all(connection)
        query = select(*FILE).where(below(request.directory), where(request.filter, file_fields(keys.values())))
        if not asks_for(request.filter, "state"):
            query = query.where(ACTIVE)
        if request.dataset:
            query = query.where(await _in_dataset(connection, request))
        return query, ordering(request.order_by, keys)


async def _page(
    connection: AsyncConnection, query: Select[*tuple[Any, ...]], request: pb.ListFilesRequest, order: Ordering
) -> pb.ListFilesResponse:
    page = await list_page(connection, query, request, order, default_size=1000, max_size=10_000)
    answer = pb.ListFilesResponse(next_page_token=page.next_page_token)
    await complete(connection, page.rows, request.view, answer.files.add)
    return answer


async def _in_dataset(connection: AsyncConnection, request: pb.ListFilesRequest) -> Any:
    query = select(dataset.c.id).where(dataset.c.name == request.dataset)
    id_ = (await connection.execute(query)).scalar()
    if id_ is None:
        raise DatasetMissing(name=request.dataset)
    at = request.as_of_time.ToDatetime(tzinfo=UTC) if request.HasField("as_of_time") else None
    # A moment to come would give a content that is still to change.
    members = is_member(literal(id_), min(at, datetime.now(UTC)) if at else None)
    return file.c.id.in_(select(dataset_file.c.file_id).where(members))


def _has_files() -> Any:
    """Return the condition that an active file lies below a directory; directories themselves are never removed."""
    inside = and_(file.c.name > directory.c.path + "/", file.c.name < directory.c.path + "0")
    return exists(select(1).where(inside, ACTIVE).correlate(directory))


def _with_replicas(rows: Iterable[Sequence[Any]]) -> dict[int, File]:
    """Return files by id from rows of FILE, or of FILE and REPLICA: one a replica."""
    found: dict[int, File] = {}
    for row in rows:
        if (one := found.get(row[0])) is None:
            one = found[row[0]] = file_proto(row)
        copy = row[len(FILE) :]
        if copy and copy[0] is not None:
            add_replica(one, *copy)
    return found


def _result(name: str, found: File | None) -> pb.FileResult:
    if found is not None:
        return pb.FileResult(file=found)
    return pb.FileResult(error=status_of(FileMissing(name=name)))
