"""Writes of many callers in one transaction: what arrives while one is committed goes into the next."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import Generic, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.kit.database.engine import Database

Item = TypeVar("Item")
Result = TypeVar("Result")
# Longer groups gain nothing and hold up other writers.
_MOST = 256


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[Item, Result]):
    item: Item
    result: "asyncio.Future[Result]"


class Grouped(Generic[Item, Result]):
    """Group commit: a transaction costs the same for one small item as for a hundred.

    `write` gets the items of a group in the order of arrival and returns a result each. It runs outside of every
    call, so what it needs of a call is in its item.
    """

    def __init__(
        self, database: Database, write: Callable[[AsyncConnection, Sequence[Item]], Awaitable[Sequence[Result]]]
    ) -> None:
        self._database = database
        self._write = write
        self._waiting: list[_Waiting[Item, Result]] = []
        self._work: asyncio.Task[None] | None = None

    async def __call__(self, item: Item) -> Result:
        """Return the result of an item once it is committed.

        When a group fails its items are written one by one, so everyone gets the error that is his own.
        """
        one: _Waiting[Item, Result] = _Waiting(item, asyncio.get_running_loop().create_future())
        self._waiting.append(one)
        if self._work is None or self._work.done():
            # A task of its own: the others must not suffer when this caller gives up.
            self._work = asyncio.create_task(self._write_all(), context=Context())
        return await one.result

    async def _write_all(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
            await self._write_group([one for one in group if not one.result.done()])

    async def _write_group(self, group: Sequence[_Waiting[Item, Result]]) -> None:
        if not group:
            return
        try:
            async with self._database.write() as connection:
                results = await self._write(connection, [one.item for one in group])
        except Exception as error:  # noqa: BLE001  given to whom it concerns
            if len(group) > 1:
                for one in group:
                    await self._write_group([one])
            elif not group[0].result.done():
                group[0].result.set_exception(error)
            return
        for one, result in zip(group, results, strict=True):
            if not one.result.done():
                one.result.set_result(result)
