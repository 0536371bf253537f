"""Following another service's events, each batch together with its effects in one transaction."""

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing

import grpc
from sqlalchemy import Column, MetaData, Table, Text, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.common.v1 import event_pb2 as pb
from khomas.kit.database import Database, insert_new

log = logging.getLogger(__name__)

Watch = grpc.aio.UnaryStreamMultiCallable[pb.WatchEventsRequest, pb.WatchEventsResponse]
Handle = Callable[[AsyncConnection, Sequence[pb.Event]], Awaitable[None]]

# A stream is renewed after this time, which also finds out that the other side is gone.
_STREAM_SECONDS = 600.0
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 10.0
# Trying again would give the same answer.
_FINAL = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNIMPLEMENTED,
)


def cursor_table(metadata: MetaData) -> Table:
    """Declare the table of how far this service has followed others; it belongs into its tables.py."""
    return Table(
        "event_cursor",
        metadata,
        Column("consumer", Text, primary_key=True),
        Column("cursor", Text, nullable=False),
    )


async def follow(watch: Watch, cursor: str, filter_text: str = "") -> AsyncGenerator[pb.WatchEventsResponse, None]:
    """Watch for ever: after a disconnect, go on from the last batch, with growing pauses.

    Once the pauses have grown, every failure is in the log: a service is away for long, or its answer never fits.
    Raises the `AioRpcError` that trying again would not cure, such as OUT_OF_RANGE.
    """
    pause = _FIRST_PAUSE_SECONDS
    while True:
        request = pb.WatchEventsRequest(cursor=cursor, filter=filter_text)
        call = watch(request, timeout=_STREAM_SECONDS)
        try:
            async for batch in call:
                cursor, pause = batch.cursor, _FIRST_PAUSE_SECONDS
                yield batch
        except grpc.aio.AioRpcError as error:
            if error.code() in _FINAL:
                raise
            if pause == _LONGEST_PAUSE_SECONDS:
                said = {"cursor": cursor, "code": error.code().name, "error": error.details()}
                log.warning("events.waits", extra=said)
        finally:
            call.cancel()
        await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311  spreads reconnects, hides nothing
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


class EventConsumer:
    """Follow the events of one service under a `name` that is unique in `table`, made by `cursor_table`."""

    def __init__(self, database: Database, table: Table, *, name: str, watch: Watch, filter_text: str = "") -> None:
        self._database = database
        self._table = table
        self._name = name
        self._watch = watch
        self._filter = filter_text

    async def run(self, handle: Handle, relist: Callable[[], Awaitable[None]] | None = None) -> None:
        """Hand over batches for ever; the cursor is saved in the transaction that `handle` writes in.

        Of several processes that follow under the same name one gets each batch.

        When the other service no longer has the events after the cursor, `relist` is called to look at the
        whole state instead; without it the error is raised.
        """
        while True:
            try:
                await self._follow(handle)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.OUT_OF_RANGE or relist is None:
                    raise
                await self._skip_over(relist)

    async def _skip_over(self, relist: Callable[[], Awaitable[None]]) -> None:
        # First the cursor, so that what changes during the listing comes again as an event.
        cursor = await self._end()
        await relist()
        async with self._database.write() as connection:
            await self._save(connection, cursor)

    async def _follow(self, handle: Handle) -> None:
        cursor = await self._saved()
        async with aclosing(follow(self._watch, cursor, self._filter)) as batches:
            async for batch in batches:
                if batch.cursor == cursor:
                    continue
                async with self._database.write() as connection:
                    if not await self._moved(connection, cursor, batch.cursor):
                        # Another process has handled these; told again they would bring old states back.
                        return
                    if batch.events:
                        await handle(connection, batch.events)
                cursor = batch.cursor

    async def _end(self) -> str:
        request = pb.WatchEventsRequest(cursor="now", filter=self._filter, until_now=True)
        cursor = ""
        async for batch in self._watch(request, timeout=_STREAM_SECONDS):
            cursor = batch.cursor
        return cursor

    async def _saved(self) -> str:
        query = select(self._table.c.cursor).where(self._table.c.consumer == self._name)
        async with self._database.read() as connection:
            return (await connection.execute(query)).scalar() or ""

    async def _moved(self, connection: AsyncConnection, before: str, cursor: str) -> bool:
        """Move the cursor on; False if it is not where we have taken it from."""
        table = self._table
        ours = (table.c.consumer == self._name, table.c.cursor == before)
        if (await connection.execute(update(table).values(cursor=cursor).where(*ours))).rowcount:
            return True
        first = {"consumer": self._name, "cursor": cursor}
        return not before and bool(await insert_new(connection, table, [first], table.c.consumer))

    async def _save(self, connection: AsyncConnection, cursor: str) -> None:
        table = self._table
        moved = await connection.execute(update(table).values(cursor=cursor).where(table.c.consumer == self._name))
        if moved.rowcount == 0:
            await connection.execute(insert(table).values(consumer=self._name, cursor=cursor))
