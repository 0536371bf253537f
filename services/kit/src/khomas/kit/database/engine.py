"""One service's database: a serialised writer and parallel readers on SQLite, a pool on PostgreSQL."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

from sqlalchemy import MetaData, Table, event, make_url
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from khomas.kit.database import migrations
from khomas.kit.database.driver import driver_of, fetch
from khomas.kit.database.failures import translated
from khomas.kit.database.insertion import Rows, insert_rows
from khomas.kit.database.sqlite import sqlite_engine
from khomas.kit.database.types import json_text, json_value
from khomas.kit.errors import UpstreamUnavailable

_BEGIN_WRITE = {"sqlite": "BEGIN IMMEDIATE", "postgresql": "BEGIN"}
_BEGIN_SNAPSHOT = {"sqlite": "BEGIN", "postgresql": "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"}
_POSTGRESQL_SETTINGS = {
    "application_name": "khomas",
    # Compiling a plan costs more than any of our statements.
    "jit": "off",
    "statement_timeout": "60s",
    # An idle transaction holds up everybody who watches events.
    "idle_in_transaction_session_timeout": "60s",
}


class Database:
    """Transactions on the database at an address such as `sqlite+aiosqlite:///…` or `postgresql+asyncpg://…`.

    `migrations` is where the service keeps its schema's history: "khomas.catalog:migrations".
    """

    def __init__(self, url: str, *, metadata: MetaData, migrations: str, connections: int = 8) -> None:
        self.url = make_url(url)
        self.metadata = metadata
        self.migrations = migrations
        self.dialect = self.url.get_backend_name()
        if self.dialect == "sqlite":
            self._writer = sqlite_engine(url, connections=1)
            self._reader = sqlite_engine(url, connections=connections, read_only=True)
        elif self.dialect == "postgresql":
            self._writer = self._reader = _postgresql_engine(url, connections)
        else:
            raise ValueError(f"databases of kind {self.dialect} are not supported; use sqlite or postgresql")
        self._after_commit: dict[AsyncConnection, list[Callable[[], None]]] = {}
        self._at_end: dict[AsyncConnection, dict[tuple[Table, tuple[str, ...]], Rows]] = {}

    @property
    def engines(self) -> tuple[AsyncEngine, ...]:
        """Return the engines, for instruments that listen to statements."""
        return tuple({self._writer, self._reader})

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction; it commits at the end of the block unless the block raises.

        SQLite: one at a time, in the order of asking. PostgreSQL: READ COMMITTED.
        """
        async with _connected(self._writer) as connection:
            try:
                async with _transaction(connection, _BEGIN_WRITE[self.dialect]):
                    yield connection
                    await insert_rows(connection, *self._at_end.pop(connection, {}).values())
                callbacks = self._after_commit.get(connection, [])
            finally:
                self._after_commit.pop(connection, None)
                self._at_end.pop(connection, None)
        for callback in callbacks:
            callback()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Open a connection for reading; every statement sees what is committed when it starts."""
        async with _connected(self._reader) as connection:
            yield connection

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[AsyncConnection]:
        """Open a connection whose statements all see the same moment."""
        async with _connected(self._reader) as connection, _transaction(connection, _BEGIN_SNAPSHOT[self.dialect]):
            yield connection

    def after_commit(self, connection: AsyncConnection, callback: Callable[[], None]) -> None:
        """Call back once the transaction on this connection is committed; never if it is not."""
        self._after_commit.setdefault(connection, []).append(callback)

    def insert_at_end(self, connection: AsyncConnection, rows: Rows) -> None:
        """Insert rows at the end of the transaction; on PostgreSQL all of them by one statement.

        Rows of one table keep their order; what they have in common is that of the first ones.
        """
        waiting = self._at_end.setdefault(connection, {})
        before = waiting.get((rows.table, rows.columns))
        if before is not None:
            rows = replace(before, values=[*before.values, *rows.values])
        waiting[rows.table, rows.columns] = rows

    async def upgrade(self) -> None:
        """Bring the schema up to date; of several processes that try at once, one does it."""
        await migrations.upgrade(self)

    async def check(self) -> None:
        """Raise `SchemaOutdated` unless the schema is the one that this program needs."""
        await migrations.check(self)

    async def close(self) -> None:
        """Close all connections."""
        for engine in self.engines:
            await engine.dispose()


@asynccontextmanager
async def _connected(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    with translated():
        async with AsyncExitStack() as stack:
            try:
                connection = await stack.enter_async_context(engine.connect())
            except OSError as error:
                raise UpstreamUnavailable(service="database") from error
            yield connection


@asynccontextmanager
async def _transaction(connection: AsyncConnection, begin: str) -> AsyncIterator[None]:
    """Run the block in a transaction; SQLAlchemy and the driver's own statements work in it side by side."""
    try:
        await fetch(connection, begin)
        yield
        await fetch(connection, "COMMIT")
    except BaseException:
        await _roll_back(connection)
        raise


async def _roll_back(connection: AsyncConnection) -> None:
    if connection.invalidated:
        return
    driver = driver_of(connection)
    try:
        # No transaction to end is no error for either.
        await (driver.execute("ROLLBACK") if connection.dialect.name == "postgresql" else driver.rollback())
    except BaseException as error:
        # Whoever gets the connection next must not find an open transaction.
        await connection.invalidate()
        if not isinstance(error, Exception):
            raise


def _postgresql_engine(url: str, connections: int) -> AsyncEngine:
    engine = create_async_engine(
        url,
        pool_size=connections,
        max_overflow=0,
        json_serializer=json_text,
        json_deserializer=json_value,
        # Transactions are begun and ended here, not by SQLAlchemy.
        isolation_level="AUTOCOMMIT",
        skip_autocommit_rollback=True,
        connect_args={"server_settings": _POSTGRESQL_SETTINGS, "timeout": 10},
    )

    def check(connection: Any, record: object, proxy: object) -> None:
        if connection.driver_connection.is_closed():
            raise DisconnectionError

    event.listen(engine.sync_engine, "checkout", check)
    return engine
