"""Pausing productions that another service refuses, so that a person looks and the others go on."""

import logging
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime

import grpc
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.bookkeeping.v1.production_pb2 import Production, Stage
from khomas.bookkeeping.progress import changed
from khomas.bookkeeping.tables import production
from khomas.kit.boundary.status import reason_of
from khomas.kit.database import AnyRow, Database
from khomas.kit.events import EventLog

log = logging.getLogger(__name__)

# Trying again would give the same answer.
REFUSALS = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.OUT_OF_RANGE,
)
AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class Pausing:
    """Takes stages one by one; one that goes wrong holds up no other."""

    def __init__(self, database: Database, events: EventLog) -> None:
        self._database = database
        self._events = events

    async def each(
        self, stages: Iterable[tuple[AnyRow, Stage]], take: Callable[[AnyRow, Stage], Awaitable[None]]
    ) -> None:
        """Do this for every stage, which asks the catalogue.

        Raises what shows that the catalogue is away at once, and what was unexpected in the end.
        """
        failures: list[Exception] = []
        for row, wanted in stages:
            try:
                await take(row, wanted)
            except grpc.aio.AioRpcError as error:
                if error.code() in AWAY:
                    raise
                if error.code() in REFUSALS:
                    said = f"{reason_of(error)}: {error.details()}"
                    await self.pause(row.production_id, f"The catalogue refuses the files of {wanted.name}: {said}")
                else:
                    failures.append(error)
            except Exception as error:  # noqa: BLE001  told together when all were looked at
                error.add_note(f"while taking files into stage {row.id}")
                failures.append(error)
        if failures:
            raise ExceptionGroup("some stages could not take files", failures)

    async def pause(self, production_id: int, message: str) -> None:
        """Let a person look; nothing is done to one that is not active."""
        async with self._database.write() as connection:
            rows = await _paused(connection, production_id, message)
            await self._events.append(connection, await changed(connection, rows))
        for row in rows:
            log.warning("production.paused", extra={"production": row.name, "refusal": message})


async def _paused(connection: AsyncConnection, production_id: int, message: str) -> list[AnyRow]:
    pausing = (
        update(production)
        .values(
            state=Production.STATE_PAUSED,
            message=message,
            update_time=datetime.now(UTC),
            version=production.c.version + 1,
        )
        .where(production.c.id == production_id, production.c.state == Production.STATE_ACTIVE)
        .returning(*production.c)
    )
    return list((await connection.execute(pausing)).all())
