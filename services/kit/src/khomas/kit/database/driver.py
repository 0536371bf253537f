"""Statements on the driver itself: one hop to SQLite's thread, one round trip to PostgreSQL.

SQLAlchemy builds and looks up a statement anew for every call (0.2-0.6 ms); a call that reads one row has 0.5 ms
altogether.
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Executable, Float, SelectBase
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import TypeEngine

Values = Sequence[Any]
Processor = Callable[[Any], Any]


def driver_of(connection: AsyncConnection) -> Any:  # Any: of aiosqlite or of asyncpg
    """Return the driver's own connection."""
    return connection.sync_connection.connection.driver_connection  # type: ignore[union-attr]  # it is open


async def fetch(connection: AsyncConnection, text: str, values: Values = ()) -> list[Any]:
    """Run a statement and return its rows as the driver gives them: moments are microseconds on SQLite."""
    _tell(connection, text)
    with _errors(text):
        if connection.dialect.name == "postgresql":
            rows: list[Any] = await driver_of(connection).fetch(text, *values)
        else:
            rows = await driver_of(connection).execute_fetchall(text, values)
    return rows


async def execute_many(connection: AsyncConnection, text: str, rows: Iterable[Values]) -> None:
    """Run a statement of SQLite for each of the rows, inside its thread."""
    _tell(connection, text)
    with _errors(text):
        await driver_of(connection).executemany(text, rows)


class Prepared:
    """A statement that is compiled once for each kind of database and run on the driver.

    Its `bindparam`s are the keyword arguments of `rows`.
    """

    def __init__(self, statement: Executable) -> None:
        self._statement = statement
        self._compiled: dict[str, _Compiled] = {}

    async def rows(self, connection: AsyncConnection, **values: Any) -> list[Any]:
        """Run it and return the rows as the driver gives them: moments are microseconds on SQLite."""
        compiled = self._for(connection.dialect)
        return await fetch(connection, compiled.text, compiled.ordered(values))

    async def values(self, connection: AsyncConnection, **values: Any) -> list[Any]:
        """Run it and return the rows as SQLAlchemy gives them: moments in UTC, JSON as what it means."""
        compiled = self._for(connection.dialect)
        return compiled.read(await fetch(connection, compiled.text, compiled.ordered(values)))

    def _for(self, dialect: Dialect) -> "_Compiled":
        compiled = self._compiled.get(dialect.name)
        if compiled is None:
            compiled = self._compiled[dialect.name] = _Compiled(self._statement, dialect)
        return compiled


class _Compiled:
    def __init__(self, statement: Executable, dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect)  # type: ignore[attr-defined]  # every executable has it
        assert isinstance(compiled, SQLCompiler)
        self.text = compiled.string
        binds = [compiled.binds[name] for name in compiled.positiontup or ()]
        self._parameters = [(bind.key, bind.value, processor(bind.type, dialect)) for bind in binds]
        columns = statement.selected_columns if isinstance(statement, SelectBase) else ()
        self._readers = [result_processor(column.type, dialect) for column in columns]

    def ordered(self, values: dict[str, Any]) -> Values:
        found = []
        for key, constant, process in self._parameters:
            value = values.get(key, constant)
            found.append(process(value) if process is not None else value)
        return found

    def read(self, rows: list[Any]) -> list[Any]:
        if not any(self._readers):
            return rows
        columns = zip(*rows, strict=True)
        read = [column if do is None else map(do, column) for do, column in zip(self._readers, columns, strict=False)]
        return list(zip(*read, strict=True))


def processor(type_: TypeEngine[Any], dialect: Dialect) -> Processor | None:
    """Return what turns a Python value into the driver's, None if nothing has to be done."""
    return type_.dialect_impl(dialect).bind_processor(dialect)


def result_processor(type_: TypeEngine[Any], dialect: Dialect) -> Processor | None:
    """Return what turns the driver's value into Python's, None if nothing has to be done."""
    # Both drivers give floats as they are.
    return None if isinstance(type_, Float) else type_.dialect_impl(dialect).result_processor(dialect, None)


def _tell(connection: AsyncConnection, text: str) -> None:
    """Tell those who listen to SQLAlchemy's statements of this one."""
    sync = connection.sync_connection
    for listener in sync.dispatch.before_cursor_execute if sync is not None else ():
        listener(sync, None, text, (), None, False)


@contextmanager
def _errors(text: str) -> Iterator[None]:
    """Raise the drivers' errors as SQLAlchemy does."""
    try:
        yield
    except Exception as error:
        code = str(getattr(error, "sqlstate", None) or "")
        if isinstance(error, sqlite3.IntegrityError) or code.startswith("23"):
            raise IntegrityError(text, None, error) from error
        if isinstance(error, sqlite3.Error) or code or type(error).__module__.startswith("asyncpg"):
            raise DBAPIError(text, None, error) from error
        raise
