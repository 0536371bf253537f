"""What files were made from, and what was made from them."""

from sqlalchemy import Integer, bindparam, func, literal, literal_column, select, true

from khomas.api.catalog.v1 import catalog_service_pb2 as pb
from khomas.catalog.details import FILE, file_proto
from khomas.catalog.errors import FileMissing
from khomas.catalog.tables import ACTIVE, file, parent
from khomas.kit.database import Database, Prepared, values_param

_ALL = 1000
_STARTS = Prepared(select(file.c.name, file.c.id).where(values_param(file.c.name, "names"), ACTIVE))
_MET = Prepared(select(*FILE).where(values_param(file.c.id, "ids")))


def _edges(dialect: str, *, up: bool) -> Prepared:
    """Return the walk from files, breadth first: edges with their depth."""
    here, there = (parent.c.child_id, parent.c.parent_id) if up else (parent.c.parent_id, parent.c.child_id)
    edges = select(parent.c.parent_id, parent.c.child_id, there.label("next"))
    first = edges.add_columns(literal(1, Integer).label("depth")).where(values_param(here, "starts"))
    walk = first.cte("walk", recursive=True)
    if dialect == "postgresql":
        # OFFSET makes it look up the edges of one file after the other in the index. A join of a table that has just
        # grown, which it knows nothing of yet, reads the whole table once a depth.
        found = edges.where(here == walk.c.next).offset(literal_column("0")).lateral("found")
        further = select(*found.c, walk.c.depth + 1).select_from(walk.join(found, true()))
    else:
        further = edges.add_columns(walk.c.depth + 1).join(walk, here == walk.c.next)
    # UNION drops repeated edges of one depth; the walk ends because files are made from older ones only.
    walk = walk.union(further.where(walk.c.depth < bindparam("deepest", type_=Integer)))
    edge = (walk.c.parent_id, walk.c.child_id)
    return Prepared(select(*edge, func.min(walk.c.depth)).group_by(*edge).order_by(edge[1], edge[0]))


_EDGES = {
    (dialect, direction): _edges(dialect, up=direction == pb.ListLineageRequest.DIRECTION_ANCESTORS)
    for dialect in ("sqlite", "postgresql")
    for direction in (pb.ListLineageRequest.DIRECTION_ANCESTORS, pb.ListLineageRequest.DIRECTION_DESCENDANTS)
}


class Lineage:
    """Walks from files to their ancestors or descendants."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def walk(self, request: pb.ListLineageRequest) -> pb.ListLineageResponse:
        """Walk, in one recursive statement between the lookups of the files that it starts from and those it meets."""
        async with self._database.snapshot() as connection:
            starts = {row[0]: row[1] for row in await _STARTS.rows(connection, names=list(set(request.names)))}
            if missing := sorted(set(request.names) - starts.keys()):
                raise FileMissing(name=missing[0])
            edges = await _EDGES[self._database.dialect, request.direction].rows(
                connection, starts=list(starts.values()), deepest=request.max_depth or _ALL
            )
            met = {id_ for edge in edges for id_ in edge[:2]} - set(starts.values())
            files = {row[0]: file_proto(row) for row in await _MET.rows(connection, ids=sorted(met))}
        names = {id_: name for name, id_ in starts.items()} | {id_: one.name for id_, one in files.items()}
        return pb.ListLineageResponse(
            edges=[
                pb.LineageEdge(parent=names[above], child=names[below], depth=depth) for above, below, depth in edges
            ],
            files=files.values(),
        )
