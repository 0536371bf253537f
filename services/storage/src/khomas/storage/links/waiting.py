"""Who is next: reads the first of every lane from the index, however many wait behind them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, and_, distinct, func, or_, select, union_all, update
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.storage.v1 import transfer_pb2 as pb
from khomas.kit.database import Database
from khomas.kit.leases import FREE
from khomas.storage.links.bounds import shared_out
from khomas.storage.links.measures import Measures
from khomas.storage.links.tables import link
from khomas.storage.rows import mappings
from khomas.storage.tables import BOUND, PAUSED, transfer
from khomas.storage.transfers.turns import lane

# Small files of a lane go together, up to so many and so many bytes.
SMALL_BYTES: Final = 8 * 1024 * 1024
RUN_FILES: Final = 200
_RUN_BYTES: Final = 64 * 1024 * 1024
_PROMOTED: Final = 5000
_WAITING = pb.Transfer.STATE_WAITING
_RUNNING = pb.Transfer.STATE_RUNNING


@dataclass(frozen=True, slots=True)
class Offer:
    """A transfer that waits for its turn."""

    uid: str
    lane: str
    turn: float
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Run:
    """Transfers of one lane that one stream moves, one after the other or small ones together."""

    uid: str
    lane: str
    # The turn to which the lane comes by it.
    turn: float
    members: Sequence[str]


class Offers:
    """Reads who is next on which lane, as far as the bounds of links allow."""

    def __init__(self, database: Database, measures: Measures) -> None:
        self._database = database
        self._measures = measures
        self._rounds = count()

    async def runs(self, streams: int, sites: Mapping[str, str]) -> list[Run]:
        """Return the next runs, for so many streams at most: four statements, whatever waits."""
        limits = await self._measures.limits()
        async with self._database.read() as connection:
            lanes = await waiting_lanes(connection)
            if not lanes:
                return []
            paces = {lane(row.source, row.destination): row.streams for row in (await connection.execute(_PACES)).all()}
            running = {row.lane: row.streams for row in (await connection.execute(_BUSY)).all()}
            # Lanes that are alike take turns in being the first.
            start = next(self._rounds) % len(lanes)
            first = self._measures.streams.first
            shares = shared_out(
                [*lanes[start:], *lanes[:start]],
                streams,
                streams={name: paces.get(name, first) for name in lanes},
                running=running,
                limits=limits,
                sites=sites,
            )
            offers = await _first(connection, shares) if shares else []
        return [run for name, share in shares.items() for run in cut([o for o in offers if o.lane == name], share)]


_PACES = select(link.c.source, link.c.destination, link.c.streams)
_BUSY = (
    select(transfer.c.lane, func.count(distinct(transfer.c.run)).label("streams"))
    .where(transfer.c.state == _RUNNING)
    .group_by(transfer.c.lane)
)


def cut(offers: Sequence[Offer], runs: int) -> list[Run]:
    """Make runs of the first offers of a lane, in their order: small files together, a large one alone."""
    cuts: list[list[Offer]] = []
    room = 0
    for offer in offers:
        small = offer.size_bytes <= SMALL_BYTES
        fits = small and offer.size_bytes <= room and cuts and len(cuts[-1]) < RUN_FILES
        if not fits:
            if len(cuts) == runs:
                break
            cuts.append([])
            room = _RUN_BYTES if small else 0
        cuts[-1].append(offer)
        room -= offer.size_bytes
    return [Run(one[0].uid, one[0].lane, one[-1].turn, [offer.uid for offer in one]) for one in cuts]


async def waiting_lanes(connection: AsyncConnection) -> list[str]:
    """Return the lanes on which anybody waits: one look into the index for each, not for each transfer."""
    return [str(name) for name in (await connection.scalars(_lanes())).all()]


def _lanes() -> Select[Any]:
    # Not the least of all: PostgreSQL would read them all for that when it thinks that there are few.
    least = select(transfer.c.lane).where(_waiting()).order_by(transfer.c.lane).limit(1).subquery()
    first = select(least.c.lane).cte("lanes", recursive=True)
    after = select(func.min(transfer.c.lane)).where(_waiting(), transfer.c.lane > first.c.lane).scalar_subquery()
    every = first.union_all(select(after).where(first.c.lane.is_not(None)))
    return select(every.c.lane).where(every.c.lane.is_not(None))


def _waiting() -> ColumnElement[bool]:
    return and_(transfer.c.state == _WAITING, transfer.c.reason == pb.TRANSFER_REASON_QUEUED)


async def _first(connection: AsyncConnection, shares: Mapping[str, int]) -> list[Offer]:
    columns = (transfer.c.uid, transfer.c.lane, transfer.c.turn, transfer.c.size_bytes)
    heads = [
        select(*columns)
        .where(_waiting(), transfer.c.lane == name)
        .order_by(transfer.c.turn)
        .limit(share * RUN_FILES)
        .subquery()
        for name, share in shares.items()
    ]
    found = union_all(*[select(head) for head in heads])
    return [Offer(*row) for row in (await connection.execute(found)).all()]


async def waits_for_nobody(connection: AsyncConnection, now: datetime) -> bool:
    """Tell whether a pause is over, a lease has ended or a deadline has passed."""
    looks = [found.limit(1).subquery() for found in _forgotten(now)]
    return (await connection.execute(union_all(*[select(look) for look in looks]))).first() is not None


async def promote(connection: AsyncConnection, now: datetime) -> Sequence[Mapping[str, Any]]:
    """Queue transfers whose pause is over or whose worker is gone; end and return those whose deadline has passed."""
    paused, abandoned, late = (transfer.c.uid.in_(found.limit(_PROMOTED)) for found in _forgotten(now))
    queued = {"state": _WAITING, "reason": pb.TRANSFER_REASON_QUEUED}
    await connection.execute(update(transfer).where(or_(paused, abandoned)).values({**queued, **FREE}))
    ended = {
        "state": pb.Transfer.STATE_FAILED,
        "reason": pb.TRANSFER_REASON_DEADLINE,
        "message": "Its deadline has passed.",
        "state_time": now,
        "end_time": now,
    }
    return mappings(await connection.execute(update(transfer).where(late).values(ended).returning(transfer)))


def _forgotten(now: datetime) -> tuple[Select[str], Select[str], Select[str]]:
    """Find who has paused long enough, whose worker is gone, and whose deadline has passed."""
    uid = select(transfer.c.uid)
    gone = or_(transfer.c.lease_expire_time.is_(None), transfer.c.lease_expire_time < now)
    return (
        uid.where(PAUSED, transfer.c.next_attempt_time <= now),
        uid.where(transfer.c.state == _RUNNING, gone),
        uid.where(BOUND, transfer.c.deadline < now),
    )
