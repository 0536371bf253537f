"""The rpcs of links."""

# The names of the methods are the contract's.
# ruff: noqa: N802

from collections.abc import Mapping
from datetime import UTC, datetime

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.storage.v1 import link_pb2, transfer_pb2
from khomas.api.storage.v1 import link_service_pb2 as pb
from khomas.api.storage.v1.link_service_pb2_grpc import LinkServiceServicer
from khomas.kit.boundary.call import Context
from khomas.kit.database import Database
from khomas.kit.errors import FieldInvalid
from khomas.kit.idempotency import Once
from khomas.storage.elements.elements import Elements, known
from khomas.storage.links.bounds import SITE, Limit
from khomas.storage.links.measures import Ends, Measure, Measures, measured
from khomas.storage.links.tables import link
from khomas.storage.tables import transfer
from khomas.storage.transfers.turns import ends

_UNDER_WAY = (transfer_pb2.Transfer.STATE_WAITING, transfer_pb2.Transfer.STATE_RUNNING)


class LinkServicer(LinkServiceServicer):
    """Implements khomas.api.storage.v1.LinkService."""

    def __init__(self, database: Database, once: Once, elements: Elements, measures: Measures) -> None:
        self._database = database
        self._once = once
        self._elements = elements
        self._measures = measures

    async def ListLinks(self, request: pb.ListLinksRequest, context: Context) -> pb.ListLinksResponse:
        queued = (
            select(transfer.c.lane, transfer.c.state, func.count())
            .where(transfer.c.state.in_(_UNDER_WAY))
            .group_by(transfer.c.lane, transfer.c.state)
        )
        async with self._database.read() as connection:
            carried = await measured(connection, datetime.now(UTC))
            rows = {(row.source, row.destination): row for row in (await connection.execute(select(link))).all()}
            counts = {(ends(name), state): count for name, state, count in (await connection.execute(queued)).all()}
        busy = {one for one, _ in counts}
        asked = [one for one in sorted(carried.keys() | busy) if _asked(one, request)]
        first = self._measures.streams.first
        found = [_link(one, rows.get(one), carried.get(one, Measure()), counts, first) for one in asked]
        limits = [_limit(one) for one in await self._measures.limits()]
        return pb.ListLinksResponse(links=found, limits=limits)

    async def SetLinkLimit(self, request: pb.SetLinkLimitRequest, context: Context) -> link_pb2.LinkLimit:
        limit = request.limit
        if limit.max_streams < 0 or limit.max_rate < 0:
            raise FieldInvalid.of("limit", "a bound is not negative; 0 is no bound")
        elements = await self._elements.all()
        for end in (limit.source, limit.destination):
            if end and not end.startswith(SITE):
                known(elements, end)
        bound = Limit(limit.source, limit.destination, limit.max_streams, limit.max_rate)

        async def work(connection: AsyncConnection) -> link_pb2.LinkLimit:
            await self._measures.set_limit(connection, bound)
            return limit

        return await self._once(request, link_pb2.LinkLimit, work)


def _asked(ends_: Ends, request: pb.ListLinksRequest) -> bool:
    source, destination = ends_
    return request.source in ("", source) and request.destination in ("", destination)


def _link(
    ends_: Ends, row: object, carried: Measure, counts: Mapping[tuple[Ends, int], int], first: int
) -> link_pb2.Link:
    message = link_pb2.Link(
        source=ends_[0],
        destination=ends_[1],
        waiting=counts.get((ends_, transfer_pb2.Transfer.STATE_WAITING), 0),
        running=counts.get((ends_, transfer_pb2.Transfer.STATE_RUNNING), 0),
        streams=getattr(row, "streams", first),
        stream_rate=carried.stream_rate,
        rate=carried.rate,
        bytes=carried.bytes,
        files=carried.files,
        errors=carried.errors,
        success=carried.success,
        message=getattr(row, "message", ""),
    )
    for name in ("error_time", "arrive_time"):
        if (moment := getattr(row, name, None)) is not None:
            getattr(message, name).FromDatetime(moment)
    return message


def _limit(one: Limit) -> link_pb2.LinkLimit:
    return link_pb2.LinkLimit(
        source=one.source, destination=one.destination, max_streams=one.max_streams, max_rate=one.max_rate
    )
