"""What files were made from, and what was made from them."""

from sqlalchemy import Integer, and_, func, literal, select
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.catalog.v1 import catalog_service_pb2 as pb
from khomas.catalog.details import file_proto
from khomas.catalog.errors import FileMissing
from khomas.catalog.membership import active_ids
from khomas.catalog.tables import file, parent
from khomas.kit.database import Database, in_values

_ALL = 1000


class Lineage:
    """Walks from files to their ancestors or descendants."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def walk(self, request: pb.ListLineageRequest) -> pb.ListLineageResponse:
        """Walk, breadth first, in one recursive statement."""
        async with self._database.snapshot() as connection:
            starts = await active_ids(connection, request.names)
            if missing := sorted(set(request.names) - starts.keys()):
                raise FileMissing(name=missing[0])
            edges = await _edges(connection, request, set(starts.values()))
            met = {id_ for pair in edges for id_ in pair} | set(starts.values())
            rows = (await connection.execute(select(file).where(in_values(file.c.id, met)))).all()
        names = {row.id: row.name for row in rows}
        return pb.ListLineageResponse(
            edges=[
                pb.LineageEdge(parent=names[above], child=names[below], depth=depth)
                for (above, below), depth in edges.items()
            ],
            files=[file_proto(row) for row in rows if row.id not in starts.values()],
        )


async def _edges(
    connection: AsyncConnection, request: pb.ListLineageRequest, starts: set[int]
) -> dict[tuple[int, int], int]:
    up = request.direction == pb.ListLineageRequest.DIRECTION_ANCESTORS
    here, there = (parent.c.child_id, parent.c.parent_id) if up else (parent.c.parent_id, parent.c.child_id)
    deepest = request.max_depth or _ALL
    walk = (
        select(parent.c.parent_id, parent.c.child_id, there.label("next"), literal(1, Integer).label("depth"))
        .where(in_values(here, starts))
        .cte("walk", recursive=True)
    )
    # UNION drops repeated edges of one depth; the walk ends because files are made from older ones only.
    walk = walk.union(
        select(parent.c.parent_id, parent.c.child_id, there, walk.c.depth + 1).join(
            walk, and_(here == walk.c.next, walk.c.depth < deepest)
        )
    )
    query = select(walk.c.parent_id, walk.c.child_id, func.min(walk.c.depth)).group_by(
        walk.c.parent_id, walk.c.child_id
    )
    rows = await connection.execute(query)
    return dict(sorted((((row[0], row[1]), row[2]) for row in rows), key=lambda edge: (edge[1], edge[0])))
