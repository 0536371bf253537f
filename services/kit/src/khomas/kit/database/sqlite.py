"""SQLite behind SQLAlchemy: a statement is one hop to the driver's thread and back."""

import asyncio
import contextlib
import sqlite3
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import aiosqlite
from sqlalchemy import AsyncAdaptedQueuePool, event
from sqlalchemy.dialects.sqlite.aiosqlite import (
    AsyncAdapt_aiosqlite_connection,
    AsyncAdapt_aiosqlite_cursor,
    AsyncAdapt_aiosqlite_dbapi,
)
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from khomas.kit.database.types import json_text, json_value

# NORMAL in WAL mode: what was acknowledged survives a SIGKILL of the process; after a power cut the
# database is whole but may miss the last moments. FULL would cost two thirds of the commit rate.
_PRAGMAS: Final = (
    "journal_mode = WAL",
    "synchronous = NORMAL",
    "busy_timeout = 10000",
    "foreign_keys = ON",
    "case_sensitive_like = ON",
    "temp_store = MEMORY",
)


def sqlite_engine(url: str, *, connections: int, read_only: bool = False) -> AsyncEngine:
    """Return an engine whose transactions are begun and ended by whoever uses it."""
    engine = create_async_engine(
        url,
        module=_Driver(aiosqlite, sqlite3),
        pool_size=connections,
        max_overflow=0,
        json_serializer=json_text,
        json_deserializer=json_value,
        poolclass=AsyncAdaptedQueuePool,
        # Each call is a hop to the driver's thread and back, so nothing is rolled back that never began.
        skip_autocommit_rollback=True,
    )
    pragmas = (*_PRAGMAS, "query_only = ON") if read_only else _PRAGMAS

    def prepare(connection: Any, record: object) -> None:
        # The driver would begin transactions by itself, too late and never for reading.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in pragmas:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    rollbacks: set[asyncio.Task[None]] = set()

    def end(connection: Any, record: object, error: object) -> None:
        # A cancelled statement makes SQLAlchemy close the connection as it is. SQLite keeps a closed connection with
        # its locks while a cursor is left anywhere, so the transaction is ended first: the driver keeps the order.
        task = asyncio.get_running_loop().create_task(_end_transaction(connection.driver_connection))
        rollbacks.add(task)
        task.add_done_callback(rollbacks.discard)

    event.listen(engine.sync_engine, "connect", prepare)
    event.listen(engine.sync_engine, "invalidate", end)
    return engine


async def _end_transaction(driver: Any) -> None:
    with contextlib.suppress(Exception):
        await driver.rollback()


@dataclass(frozen=True, slots=True)
class _Told:
    """What a cursor says of the statement that it has run."""

    description: Any = None
    rowcount: int = -1
    lastrowid: int | None = None


class _Cursor(AsyncAdapt_aiosqlite_cursor):
    """Runs a statement, takes all rows and closes at once; SQLAlchemy's own goes to the thread for each of that."""

    __slots__ = ("_told", "arraysize")

    def __init__(self, adapt_connection: Any) -> None:
        self._adapt_connection = adapt_connection
        self._connection = adapt_connection._connection
        self._rows = deque()
        self._told = _Told()
        self.arraysize = 1

    @property
    def description(self) -> Any:
        """Return what the columns are."""
        return self._told.description

    @property
    def rowcount(self) -> int:
        """Return how many rows were changed."""
        return self._told.rowcount

    @property
    def lastrowid(self) -> Any:
        """Return the number of the last row that was inserted."""
        return self._told.lastrowid

    async def _execute_async(self, operation: Any, parameters: Any) -> None:
        await self._run(sqlite3.Connection.execute, operation, parameters or ())

    async def _executemany_async(self, operation: Any, seq_of_parameters: Any) -> None:
        await self._run(sqlite3.Connection.executemany, operation, seq_of_parameters)

    async def _run(self, *what: Any) -> None:
        driver: Any = self._connection
        async with self._adapt_connection._execute_mutex:
            self._told, rows = await driver._execute(_ran, driver._conn, *what)
            self._rows = deque(rows)

    async def _async_soft_close(self) -> None:
        """Do nothing: it is closed."""

    def close(self) -> None:
        """Forget what was not fetched."""
        self._rows.clear()


class _Connection(AsyncAdapt_aiosqlite_connection):
    __slots__ = ()

    _cursor_cls = _Cursor


class _Driver(AsyncAdapt_aiosqlite_dbapi):
    def connect(self, *arguments: Any, **options: Any) -> AsyncAdapt_aiosqlite_connection:
        opened = super().connect(*arguments, **options)
        return _Connection(self, opened._connection)


def _ran(connection: sqlite3.Connection, method: Any, operation: str, parameters: Any) -> tuple[_Told, Sequence[Any]]:
    """Run a statement. In the driver's thread."""
    with contextlib.closing(method(connection, operation, parameters)) as cursor:
        rows = cursor.fetchall() if cursor.description else ()
        return _Told(cursor.description, cursor.rowcount, cursor.lastrowid), rows
