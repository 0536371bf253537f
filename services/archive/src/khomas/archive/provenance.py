"""Which job and production made a file, as bookkeeping knows it, for the cards of its copy."""

import asyncio
from collections.abc import Iterable, Mapping
from datetime import timedelta
from importlib.metadata import version
from typing import Final

import grpc

from khomas.api.archive.v1 import release_pb2
from khomas.api.bookkeeping.v1 import bookkeeping_service_pb2 as pb
from khomas.api.bookkeeping.v1 import provenance_pb2
from khomas.api.bookkeeping.v1.bookkeeping_service_pb2_grpc import BookkeepingServiceStub
from khomas.archive.offers import Offer

_AT_ONCE: Final = 8
# Bookkeeping has not heard of it, or is not there.
_UNKNOWN: Final = frozenset({grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED})
_KINDS: Final = {"attempt": "KHATTEMP", "job": "KHJOB", "production": "KHPROD"}
# Relations that lead from an attempt to its job and on to the production, and never to other files.
_OWN: Final = frozenset({"attempt of", "made for", "part of"})
_COMMENTS: Final = {
    "KHATTEMP": "attempt of the job",
    "KHJOB": "job that made the source",
    "KHPROD": "production of that job",
}

Cards = Mapping[str, tuple[str, str]]


class Provenance:
    """Asks bookkeeping; without one it knows nothing."""

    def __init__(self, channel: grpc.aio.Channel | None, deadline: timedelta) -> None:
        self._stub = None if channel is None else BookkeepingServiceStub(channel)
        self._seconds = deadline.total_seconds()

    async def of(self, origins: Iterable[str]) -> dict[str, Cards]:
        """Return the cards about what made files, by origin."""
        asked = sorted({origin for origin in origins if origin})
        limit = asyncio.Semaphore(_AT_ONCE)

        async def one(origin: str) -> Cards:
            async with limit:
                return await self._cards(origin)

        return dict(zip(asked, await asyncio.gather(*map(one, asked)), strict=True))

    async def _cards(self, origin: str) -> Cards:
        if self._stub is None:
            return {}
        request = pb.GetTraceRequest(id=origin, max_depth=1)
        try:
            trace = await self._stub.GetTrace(request, timeout=self._seconds)
        except grpc.aio.AioRpcError as error:
            if error.code() in _UNKNOWN:
                return {}
            raise
        return _of_trace(trace)


def _of_trace(trace: provenance_pb2.Trace) -> Cards:
    """Take attempt, job and production of the subject itself, not those of what it was made from."""
    own = {trace.subject}
    fresh = own
    while fresh:
        fresh = {edge.to for edge in trace.edges if getattr(edge, "from") in fresh and edge.relation in _OWN} - own
        own = own | fresh
    cards: dict[str, tuple[str, str]] = {}
    for node in trace.nodes:
        keyword = _KINDS.get(node.kind)
        if keyword and node.name in own:
            cards[keyword] = node.uid if keyword == "KHATTEMP" else node.name, _COMMENTS[keyword]
    return cards


def cards(release: release_pb2.Release, offer: Offer, made_by: Cards, terms: str) -> Cards:
    """Return the cards of a published copy."""
    own = {
        "KHRELEAS": (release.name, "release"),
        "KHPUBDID": (offer.publisher_did, "publisher identifier"),
        "KHFILE": (offer.source.name, "file that was released"),
        "KHFILUID": (offer.source.uid, "uid of that file"),
        "KHORIGIN": (offer.source.origin, "uid of what made it"),
        **made_by,
        "KHTERMS": (terms, "terms of use"),
        "KHSOFT": (f"khomas-archive {version('khomas-archive')}", "wrote this copy"),
    }
    return {keyword: card for keyword, card in own.items() if card[0]}
