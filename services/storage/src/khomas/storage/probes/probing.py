"""Tries StorageElements and the ways between them at a modest pace, and remembers how it went."""

import asyncio
import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration
from sqlalchemy import Row, delete, or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.storage.v1 import care_pb2 as pb
from khomas.api.storage.v1 import integrity_service_pb2
from khomas.kit.database import Database, insert_many, rows_table
from khomas.kit.errors import DomainError
from khomas.storage.elements.elements import Element, Elements, Protocols
from khomas.storage.landing import Landings
from khomas.storage.probes.trying import Tried, one, way
from khomas.storage.protocols.interface import StorageProtocol
from khomas.storage.reconciling.policies import Policies, Policy
from khomas.storage.reconciling.tables import probe

_AT_ONCE: Final = 4
_SECONDS: Final = 120.0
_REMEMBERED: Final = 100
_RESULT: Final = (
    *("source", "destination", "time", "failed_step", "message", "elapsed_seconds"),
    *("bytes_per_second", "recent", "success_time", "failures"),
)


class Probing:
    """Probes what is due; between all pairs once while each StorageElement is probed as often as there are others."""

    def __init__(self, database: Database, elements: Elements, protocols: Protocols, policies: Policies) -> None:
        self._database = database
        self._elements = elements
        self._protocols = protocols
        self._policies = policies
        self._landings = Landings()

    async def page(self, request: integrity_service_pb2.ListProbesRequest) -> integrity_service_pb2.ListProbesResponse:
        """Read the newest of every StorageElement and every way."""
        query = select(probe).where(probe.c.time.is_not(None)).order_by(probe.c.source, probe.c.destination)
        if request.storage_element:
            ends = (probe.c.source == request.storage_element, probe.c.destination == request.storage_element)
            query = query.where(or_(*ends))
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return integrity_service_pb2.ListProbesResponse(probes=[_proto(row) for row in rows])

    async def work(self) -> None:
        """Plan what is new, and do what is due."""
        elements, policies = await self._elements.all(), await self._policies.all()
        await self._plan(elements, policies)
        rows = await self._claim(elements, policies)
        for start in range(0, len(rows), _AT_ONCE):
            some = rows[start : start + _AT_ONCE]
            results = await asyncio.gather(*(self._tried(elements, row) for row in some))
            await self._settle([_outcome(row, result) for row, result in zip(some, results, strict=True)])

    async def _plan(self, elements: Mapping[str, Element], policies: Mapping[str, Policy]) -> None:
        wanted = {
            (source, destination)
            for source, one_end in elements.items()
            for destination, other_end in elements.items()
            if policies[source].probe_interval and policies[destination].probe_interval
            if source == destination or (one_end.takes_uploads and other_end.takes_uploads)
        }
        async with self._database.read() as connection:
            query = select(probe.c.source, probe.c.destination)
            there = {(row.source, row.destination) for row in (await connection.execute(query)).all()}
        new, gone = sorted(wanted - there), sorted(there - wanted)
        if not new and not gone:
            return
        now = datetime.now(UTC)
        rows = [
            _new(source, destination, now + _pause(source, destination, policies) * random.random())  # noqa: S311
            for source, destination in new
        ]
        async with self._database.write() as connection:
            await insert_many(connection, probe, rows, skip_existing=True)
            if gone:
                await connection.execute(delete(probe).where(tuple_(probe.c.source, probe.c.destination).in_(gone)))

    async def _claim(self, elements: Mapping[str, Element], policies: Mapping[str, Policy]) -> Sequence[Row[Any]]:
        """Take what is due: whoever moves its next time on does it."""
        now = datetime.now(UTC)
        async with self._database.read() as connection:
            if (await connection.execute(select(probe).where(probe.c.next_time <= now).limit(1))).first() is None:
                return []
        async with self._database.write() as connection:
            due = select(probe).where(probe.c.next_time <= now).with_for_update(skip_locked=True)
            rows = [
                row
                for row in (await connection.execute(due)).all()
                if row.source in elements and row.destination in elements
            ]
            await _moved_on(
                connection,
                [(row.source, row.destination, now + _pause(row.source, row.destination, policies)) for row in rows],
            )
        return rows

    async def _tried(self, elements: Mapping[str, Element], row: Row[Any]) -> Tried:
        try:
            async with asyncio.timeout(_SECONDS):
                source = self._protocols.of(elements[row.source])
                if row.source == row.destination:
                    element = elements[row.source]
                    return await one(source, writes=element.takes_uploads and source.abilities.writes)
                destination: StorageProtocol = self._protocols.of(elements[row.destination])
                return await way(source, destination, self._landings)
        except TimeoutError:
            return Tried("read", f"not done in {_SECONDS:g} s", _SECONDS)
        except DomainError as error:
            return Tried("write", error.message)

    async def _settle(self, outcomes: Sequence[Sequence[Any]]) -> None:
        columns = {name: probe.c[name].type for name in _RESULT}
        async with self._database.write() as connection:
            new = rows_table(connection, columns, outcomes)
            same = (probe.c.source == new.c.source, probe.c.destination == new.c.destination)
            await connection.execute(update(probe).where(*same).values({name: new.c[name] for name in _RESULT[2:]}))


async def _moved_on(connection: AsyncConnection, times: Sequence[tuple[str, str, datetime]]) -> None:
    if times:
        columns = {name: probe.c[name].type for name in ("source", "destination", "next_time")}
        new = rows_table(connection, columns, times)
        same = (probe.c.source == new.c.source, probe.c.destination == new.c.destination)
        await connection.execute(update(probe).where(*same).values(next_time=new.c.next_time))


def _pause(source: str, destination: str, policies: Mapping[str, Policy]) -> timedelta:
    often = [policies[name].probe_interval for name in (source, destination) if name in policies]
    pause = max(often, default=timedelta(hours=1)) or timedelta(hours=1)
    return pause if source == destination else pause * max(1, len(policies) - 1)


def _new(source: str, destination: str, next_time: datetime) -> dict[str, Any]:
    return {
        "source": source,
        "destination": destination,
        "time": None,
        "failed_step": "",
        "message": "",
        "elapsed_seconds": 0.0,
        "bytes_per_second": 0.0,
        "recent": "",
        "success_time": None,
        "failures": 0,
        "next_time": next_time,
    }


def _outcome(row: Row[Any], tried: Tried) -> tuple[Any, ...]:
    now, well = datetime.now(UTC), not tried.failed_step
    recent = (row.recent + ("1" if well else "0"))[-_REMEMBERED:]
    return (
        *(row.source, row.destination, now, tried.failed_step, tried.message, tried.elapsed_seconds),
        *(tried.bytes_per_second, recent, now if well else row.success_time, 0 if well else row.failures + 1),
    )


def _proto(row: Row[Any]) -> pb.Probe:
    message = pb.Probe(
        source=row.source,
        destination=row.destination,
        failed_step=row.failed_step,
        message=row.message,
        elapsed=Duration(seconds=int(row.elapsed_seconds), nanos=int(row.elapsed_seconds % 1 * 1e9)),
        bytes_per_second=row.bytes_per_second,
        recent_successes=row.recent.count("1"),
        recent_probes=len(row.recent),
        failures=row.failures,
    )
    message.time.FromDatetime(row.time)
    if row.success_time is not None:
        message.success_time.FromDatetime(row.success_time)
    return message
