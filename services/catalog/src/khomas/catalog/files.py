"""Reading files: by name, by search, by directory."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Select, and_, exists, literal, or_, select, union_all
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.catalog.v1 import catalog_service_pb2 as pb
from khomas.api.catalog.v1.file_pb2 import DirectoryEntry, File
from khomas.catalog.details import complete
from khomas.catalog.errors import DatasetMissing, FileMissing
from khomas.catalog.keys import Keys
from khomas.catalog.membership import is_member
from khomas.catalog.searching import asks_for, below, file_fields, in_directory, ordering
from khomas.catalog.tables import ACTIVE, dataset, dataset_file, directory, file
from khomas.kit.boundary.status import status_of
from khomas.kit.database import Database, in_values
from khomas.kit.filtering import where
from khomas.kit.paging import Ordering, list_page

BY_UID = "files/"
_STREAM_PAGE = 2000


class Files:
    """The reading rpcs about files."""

    def __init__(self, database: Database, keys: Keys) -> None:
        self._database = database
        self._keys = keys

    async def get(self, request: pb.BatchGetFilesRequest) -> pb.BatchGetFilesResponse:
        """Read files by LFN or "files/{uid}"."""
        uids = {name.removeprefix(BY_UID) for name in request.names if name.startswith(BY_UID)}
        names = {name for name in request.names if not name.startswith(BY_UID)}
        by_name = and_(in_values(file.c.name, names), ACTIVE)
        wanted = or_(by_name, in_values(file.c.uid, uids)) if uids else by_name
        async with self._database.read() as connection:
            rows = (await connection.execute(select(file).where(wanted))).all()
            found = await complete(connection, rows, request.view)
        results = {one.name: one for one in found if one.state == File.STATE_ACTIVE}
        results |= {BY_UID + one.uid: one for one in found}
        return pb.BatchGetFilesResponse(results=[_result(name, results.get(name)) for name in request.names])

    async def page(self, request: pb.ListFilesRequest) -> pb.ListFilesResponse:
        """Search, a page at a time."""
        async with self._database.read() as connection:
            query, order = await self._search(connection, request)
            return await _page(connection, query, request, order)

    async def stream(self, request: pb.ListFilesRequest) -> AsyncIterator[pb.ListFilesResponse]:
        """Search, everything, as of one snapshot."""
        async with self._database.snapshot() as connection:
            query, order = await self._search(connection, request)
            step = pb.ListFilesRequest()
            step.CopyFrom(request)
            step.page_size, step.page_token = _STREAM_PAGE, ""
            while True:
                answer = await _page(connection, query, step, order)
                step.page_token, answer.next_page_token = answer.next_page_token, ""
                if answer.files:
                    yield answer
                if not step.page_token:
                    return

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
            rows = (await connection.execute(select(file).where(in_values(file.c.id, ids)))).all()
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
        query = select(file).where(below(request.directory), where(request.filter, file_fields(keys.values())))
        if not asks_for(request.filter, "state"):
            query = query.where(ACTIVE)
        if request.dataset:
            query = query.where(await _in_dataset(connection, request))
        return query, ordering(request.order_by, keys)


async def _page(
    connection: AsyncConnection, query: Select[*tuple[Any, ...]], request: pb.ListFilesRequest, order: Ordering
) -> pb.ListFilesResponse:
    page = await list_page(connection, query, request, order, default_size=1000, max_size=10_000)
    files = await complete(connection, page.rows, request.view)
    return pb.ListFilesResponse(files=files, next_page_token=page.next_page_token)


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


def _result(name: str, found: File | None) -> pb.FileResult:
    if found is not None:
        return pb.FileResult(file=found)
    return pb.FileResult(error=status_of(FileMissing(name=name)))
