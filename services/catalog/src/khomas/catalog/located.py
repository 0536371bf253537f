"""What lies on one StorageElement according to the catalogue."""

from collections.abc import AsyncIterator
from typing import Final

from sqlalchemy import CompoundSelect, Select, and_, select, union_all

from khomas.api.catalog.v1 import catalog_service_pb2 as pb
from khomas.catalog.names import default_path
from khomas.catalog.tables import NOT_DELETED, file, replica
from khomas.kit.database import AnyRow, Database, in_values

_PAGE: Final = 1000


class Located:
    """Answers StreamReplicas."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def stream(self, request: pb.StreamReplicasRequest) -> AsyncIterator[pb.StreamReplicasResponse]:
        """Stream the replicas of a StorageElement, all or those at some paths, as of one snapshot."""
        async with self._database.snapshot() as connection:
            query = _query(request).execution_options(yield_per=_PAGE)
            async with connection.stream(query) as result:
                async for rows in result.partitions(_PAGE):
                    yield pb.StreamReplicasResponse(files=[_located(row) for row in rows])


def _query(request: pb.StreamReplicasRequest) -> Select[*tuple[object, ...]] | CompoundSelect[*tuple[object, ...]]:
    columns = (
        *(file.c.name, file.c.uid, file.c.state, file.c.size_bytes, file.c.adler32),
        *(replica.c.storage_element, replica.c.path),
        *(replica.c.state.label("replica_state"), replica.c.verify_time),
    )
    joined = replica.join(file, file.c.id == replica.c.file_id)
    there = and_(replica.c.storage_element == request.storage_element, NOT_DELETED)
    query = select(*columns).select_from(joined).where(there)
    if not request.paths:
        return query
    # Each half has an index of its own; no plan has one for both.
    usual = in_values(file.c.name, [f"/{path}" for path in request.paths])
    return union_all(
        query.where(in_values(replica.c.path, list(request.paths))), query.where(usual, replica.c.path.is_(None))
    )


def _located(row: AnyRow) -> pb.LocatedFile:
    found = pb.LocatedFile(name=row.name, uid=row.uid, state=row.state, size_bytes=row.size_bytes, adler32=row.adler32)
    found.replica.storage_element = row.storage_element
    found.replica.path = row.path or default_path(row.name)
    found.replica.state = row.replica_state
    if row.verify_time is not None:
        found.replica.verify_time.FromDatetime(row.verify_time)
    return found
