"""One service's database: a serialised writer and parallel readers on SQLite, a pool on PostgreSQL."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from sqlalchemy import AsyncAdaptedQueuePool, MetaData, event, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from khomas.kit.database import migrations
from khomas.kit.database.failures import translated
from khomas.kit.errors import UpstreamUnavailable

# NORMAL in WAL mode: what was acknowledged survives a SIGKILL of the process; after a power cut the
# database is whole but may miss the last moments. FULL would cost two thirds of the commit rate.
_PRAGMAS = (
    "journal_mode = WAL",
    "synchronous = NORMAL",
    "busy_timeout = 10000",
    "foreign_keys = ON",
    "case_sensitive_like = ON",
    "temp_store = MEMORY",
)
_READER_PRAGMAS = (*_PRAGMAS, "query_only = ON")
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
            self._writer = _sqlite_engine(url, "BEGIN IMMEDIATE", _PRAGMAS, connections=1)
            self._reader = _sqlite_engine(url, None, _READER_PRAGMAS, connections=connections)
            self._snapshots = _sqlite_engine(url, "BEGIN", _READER_PRAGMAS, connections=connections)
        elif self.dialect == "postgresql":
            self._writer = _postgresql_engine(url, connections)
            self._reader = self._writer.execution_options(isolation_level="AUTOCOMMIT")
            self._snapshots = self._writer.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
        else:
            raise ValueError(f"databases of kind {self.dialect} are not supported; use sqlite or postgresql")
        # Engines with other options share the pool, and the instruments, of the one they were made from.
        self._own_engines = (
            (self._writer, self._reader, self._snapshots) if self.dialect == "sqlite" else (self._writer,)
        )
        self._after_commit: dict[AsyncConnection, list[Callable[[], None]]] = {}

    @property
    def engines(self) -> tuple[AsyncEngine, ...]:
        """Return the engines, for instruments that listen to statements."""
        return self._own_engines

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction; it commits at the end of the block unless the block raises.

        SQLite: one at a time, in the order of asking. PostgreSQL: READ COMMITTED.
        """
        async with _connected(self._writer) as connection:
            try:
                async with connection.begin():
                    yield connection
                callbacks = self._after_commit.get(connection, [])
            finally:
                self._after_commit.pop(connection, None)
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
        async with _connected(self._snapshots) as connection, connection.begin():
            yield connection

    def after_commit(self, connection: AsyncConnection, callback: Callable[[], None]) -> None:
        """Call back once the transaction on this connection is committed; never if it is not."""
        self._after_commit.setdefault(connection, []).append(callback)

    async def upgrade(self) -> None:
        """Bring the schema up to date; of several processes that try at once, one does it."""
        await migrations.upgrade(self)

    async def check(self) -> None:
        """Raise `SchemaOutdated` unless the schema is the one that this program needs."""
        await migrations.check(self)

    async def close(self) -> None:
        """Close all connections."""
        for engine in self._own_engines:
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


def _postgresql_engine(url: str, connections: int) -> AsyncEngine:
    return create_async_engine(
        url,
        pool_size=connections,
        max_overflow=0,
        skip_autocommit_rollback=True,
        connect_args={"server_settings": _POSTGRESQL_SETTINGS, "timeout": 10},
    )


def _sqlite_engine(url: str, begin: str | None, pragmas: Sequence[str], *, connections: int) -> AsyncEngine:
    engine = create_async_engine(
        url,
        pool_size=connections,
        max_overflow=0,
        poolclass=AsyncAdaptedQueuePool,
        # Each call is a hop to the driver's thread and back, so nothing is rolled back that never began.
        skip_autocommit_rollback=begin is None,
    )

    def prepare(connection: Any, record: object) -> None:
        # The driver would begin transactions by itself, too late and never for reading.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in pragmas:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    event.listen(engine.sync_engine, "connect", prepare)
    if begin is not None:
        event.listen(engine.sync_engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine
