"""Has runs moved by other executors, where the settings say so."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from khomas.api.storage.v1 import transfer_pb2 as pb
from khomas.kit.ids import new_uid
from khomas.storage.checksums import Algorithm
from khomas.storage.elements.elements import Element, Protocols
from khomas.storage.executors.interface import Executor, ExecutorFault, Order, Phase, Standing
from khomas.storage.landing import INCOMING, Landing, discard_all
from khomas.storage.protocols.interface import Problem, ProtocolFault, ThirdParty
from khomas.storage.transfers.attempts import Attempt
from khomas.storage.transfers.copying import CopyFailed, destination_side, source_side
from khomas.storage.transfers.moving import Move, Moving, ending
from khomas.storage.transfers.queue import Queue

log = logging.getLogger(__name__)

_UNDER_WAY: Final = frozenset({Phase.WAITING, Phase.RUNNING})
# An engine that has not answered for so many looks has lost its batch, as far as we can tell.
_MISSED: Final = 20


@dataclass(frozen=True, slots=True)
class Route:
    """Which executor moves files between two ends; an empty end is any."""

    executor: str
    source: str = ""
    destination: str = ""

    def matches(self, source: str, destination: str) -> bool:
        """Tell whether it is for this pair."""
        return self.source in ("", source) and self.destination in ("", destination)


class Outside:
    """Knows the executors and the pairs that they are for; the first route that matches counts."""

    def __init__(
        self,
        queue: Queue,
        protocols: Protocols,
        executors: Mapping[str, Executor],
        routes: Sequence[Route],
        poll: timedelta,
    ) -> None:
        self._queue = queue
        self._protocols = protocols
        self._executors = executors
        self._routes = routes
        self._poll = poll.total_seconds()

    def takes(self, attempts: Sequence[Attempt]) -> bool:
        """Tell whether a run is moved by the executor of its pair, and not by us."""
        return bool(self._executor(attempts))

    async def run(self, attempts: Sequence[Attempt], destination: Element, moving: Moving) -> None:
        """Have a run moved by the executor of its pair."""
        name = self._executor(attempts)
        batches: dict[str, list[Attempt]] = {}
        for attempt in attempts:
            attempt.executor = name
            batches.setdefault(attempt.row["external"], []).append(attempt)
        await asyncio.gather(*(self._batch(name, some, destination, moving) for some in batches.values()))

    async def _batch(self, name: str, attempts: Sequence[Attempt], destination: Element, moving: Moving) -> None:
        """Follow one batch to its end. Cancelled, leave it: whoever comes next asks for it."""
        executor = self._executors[name]
        moves = await self._landings(attempts, destination, moving)
        try:
            batch = await self._taken(name, executor, moves)
            if batch:
                await self._follow(executor, batch, moves)
                await self._land(moves, moving)
        except ExecutorFault as fault:
            _end_all(moves, fault)
        await discard_all([landing for _, landing in moves])

    async def close(self) -> None:
        """End all connections."""
        await asyncio.gather(*(one.close() for one in self._executors.values()))

    def _executor(self, attempts: Sequence[Attempt]) -> str:
        known = attempts[0].row["external"].partition(":")[0]
        if known in self._executors:
            return str(known)
        source, destination = attempts[0].source, attempts[0].row["destination"]
        return next((one.executor for one in self._routes if one.matches(source, destination)), "")

    async def _landings(self, attempts: Sequence[Attempt], destination: Element, moving: Moving) -> list[Move]:
        moves = []
        for attempt in attempts:
            with ending(attempt):
                with destination_side():
                    landing = await moving.landings.begin(self._protocols.of(destination))
                if attempt.row["hidden"]:
                    landing.hidden = attempt.row["hidden"]
                moves.append((attempt, landing))
        return moves

    async def _taken(self, name: str, executor: Executor, moves: Sequence[Move]) -> str:
        """Return the id of the batch: that of an attempt before a crash, or of a new one."""
        if not moves:
            return ""
        if external := moves[0][0].row["external"]:
            return str(external).partition(":")[2]
        orders = []
        for attempt, landing in moves:
            landing.hidden = f"{INCOMING}/{new_uid()}"
            with ending(attempt):
                orders.append(await self._order(attempt, landing))
        if not orders:
            return ""
        batch = await executor.take(orders)
        ours = {attempt.uid: (attempt, landing) for attempt, landing in moves if attempt.ended is None}
        kept = await self._queue.note_external(
            {uid: attempt.epoch for uid, (attempt, _) in ours.items()},
            f"{name}:{batch}",
            {uid: landing.hidden for uid, (_, landing) in ours.items()},
        )
        for uid in ours.keys() - kept:
            ours[uid][0].end(pb.TRANSFER_REASON_CANCELLED, "the transfer was taken back or taken over")
        return batch

    async def _order(self, attempt: Attempt, landing: Landing) -> Order:
        element, replica = attempt.candidates[0]
        with source_side():
            giver = _third_party(self._protocols.of(element).third_party, element.id)
            source = await giver.remote(replica.path, write=False)
        with destination_side():
            taker = _third_party(landing.protocol.third_party, attempt.row["destination"])
            target = await taker.remote(landing.hidden, write=True)
        return Order(attempt.uid, source.url, target.url, attempt.wanted, attempt.row["priority"])

    async def _follow(self, executor: Executor, batch: str, moves: Sequence[Move]) -> None:
        """Ask until nothing is under way any more."""
        missed, cancelled = 0, False
        while True:
            try:
                found = (await executor.poll([batch])).get(batch)
                missed = 0
            except ExecutorFault as fault:
                missed += 1
                if not fault.passing or missed >= _MISSED:
                    raise
                found = {}
            if found is None:
                raise ExecutorFault(f"it does not know batch {batch} any more", passing=True)
            for attempt, _ in moves:
                _note(attempt, found.get(attempt.uid))
            left = [attempt for attempt, _ in moves if attempt.ended is None and _under_way(found.get(attempt.uid))]
            if not left and found:
                return
            if not cancelled and left and all(attempt.copy.stopped for attempt in left):
                cancelled = True
                await executor.cancel([batch])
            await asyncio.sleep(self._poll)

    async def _land(self, moves: Sequence[Move], moving: Moving) -> None:
        for attempt, _ in moves:
            if attempt.ended is None:
                # What the engine says of checksums is not asked.
                attempt.copy.unverified = {Algorithm.ADLER32: attempt.wanted.adler32}
                attempt.copy.bytes = attempt.wanted.size_bytes
        await moving.land([move for move in moves if move[0].ended is None])


def _third_party(found: ThirdParty | None, element: str) -> ThirdParty:
    if found is None:
        raise ProtocolFault(Problem.CONFIGURATION, f"no other engine can reach {element}: it has no third-party copies")
    return found


def _under_way(standing: Standing | None) -> bool:
    return standing is None or standing.phase in _UNDER_WAY


def _note(attempt: Attempt, standing: Standing | None) -> None:
    if standing is None or attempt.ended is not None:
        return
    attempt.copy.bytes = standing.bytes
    if standing.phase is Phase.FAILED:
        attempt.end(reason_of(standing.message), standing.message)
    elif standing.phase is Phase.CANCELLED:
        attempt.end(pb.TRANSFER_REASON_TRANSIENT, standing.message or "the executor was told to cancel it")


# What engines of the grid say, in lower case, in the order of asking.
_WORDS: Final = (
    (("no space", "quota", "enospc"), pb.TRANSFER_REASON_SPACE),
    (("certificate", "proxy", "credential", "token", "authentication"), pb.TRANSFER_REASON_CREDENTIAL),
    (("source checksum", "source and user-defined", "source file"), pb.TRANSFER_REASON_SOURCE),
    (("checksum",), pb.TRANSFER_REASON_DESTINATION_CHECKSUM),
    (("source",), pb.TRANSFER_REASON_SOURCE),
    (("destination",), pb.TRANSFER_REASON_DESTINATION),
)


def reason_of(message: str) -> pb.TransferReason.ValueType:
    """Return what an engine's message means; TRANSIENT where it names no end."""
    lower = message.lower()
    found = (reason for words, reason in _WORDS if any(word in lower for word in words))
    return next(found, pb.TRANSFER_REASON_TRANSIENT)


def _end_all(moves: Sequence[Move], fault: ExecutorFault) -> None:
    reason = pb.TRANSFER_REASON_TRANSIENT if fault.passing else pb.TRANSFER_REASON_CONFIGURATION
    for attempt, _ in moves:
        if attempt.ended is None and attempt.copied is None:
            with ending(attempt):
                raise CopyFailed(reason, f"{attempt.executor}: {fault.message}")
