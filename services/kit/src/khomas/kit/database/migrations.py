"""The history of a service's schema: upgrade, check, and write the next revision."""

import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import Connection, NullPool, column, inspect, select, table, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

# Alembic is slow to import (0.3 s, 9 MiB), so it comes in where it is used.
if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext
    from alembic.config import Config

    from khomas.kit.database.engine import Database


class SchemaOutdated(RuntimeError):
    """The database's schema is not the one that this version of the service needs."""


async def upgrade(database: "Database") -> None:
    """Bring the schema up to date; of several processes that try at once, one does it."""
    if await _current(database) >= _wanted(database):
        return

    from alembic import command

    async with _exclusive(database) as connection:
        await connection.run_sync(lambda sync: command.upgrade(_config(database, sync), "head"))


async def check(database: "Database") -> None:
    """Raise `SchemaOutdated` if the schema is older than this program; a newer one must do, or no update rolls."""
    current, wanted = await _current(database), _wanted(database)
    if current < wanted:
        raise SchemaOutdated(
            f"the schema of {database.url.render_as_string()} is at revision {current or 'none'}, "
            f"this program needs {wanted}: run `khomas-{_name(database)} migrate`"
        )


async def _current(database: "Database") -> str:
    def read(connection: Connection) -> str:
        name = _version_table(database)
        if not inspect(connection).has_table(name):
            return ""
        return str(connection.scalar(select(column("version_num")).select_from(table(name))) or "")

    async with database.read() as connection:
        return await connection.run_sync(read)


def _wanted(database: "Database") -> str:
    return max(_revisions(database), default="")


def _revisions(database: "Database") -> list[str]:
    """Return the numbers that the names of the revision files begin with."""
    return [entry.name[:4] for entry in _folder(database).iterdir() if entry.name[:4].isdigit()]


def _folder(database: "Database") -> Traversable:
    package, _, folder = database.migrations.partition(":")
    return files(package) / folder


async def differences(database: "Database") -> list[str]:
    """List where the schema in the database differs from the tables in the code."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    def compare(connection: Connection) -> list[str]:
        options = _config(database, connection).attributes["khomas"]
        return [
            str(change)
            for change in compare_metadata(MigrationContext.configure(connection, opts=options), database.metadata)
        ]

    async with database.snapshot() as connection:
        return await connection.run_sync(compare)


async def revise(database: "Database", message: str) -> None:
    """Write the next revision file from what the code has and the database has not."""
    from alembic import command

    number = len(_revisions(database)) + 1
    async with _exclusive(database) as connection:
        await connection.run_sync(
            lambda sync: command.revision(
                _config(database, sync), message=message, autogenerate=True, rev_id=f"{number:04}"
            )
        )


@asynccontextmanager
async def _exclusive(database: "Database") -> AsyncIterator[AsyncConnection]:
    """Open a transaction that only one process at a time can have, on a connection of its own."""
    engine = create_async_engine(database.url, poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            if database.dialect == "sqlite":
                # Altering a table means copying it, which foreign keys would take for a deletion.
                for statement in ("PRAGMA busy_timeout = 60000", "PRAGMA journal_mode = WAL"):
                    await connection.exec_driver_sql(statement)
                await connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                lock = zlib.crc32(database.migrations.encode())
                await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": lock})
            yield connection
            await connection.commit()
    finally:
        await engine.dispose()


def _name(database: "Database") -> str:
    return database.migrations.partition(":")[0].rpartition(".")[2]


def _version_table(database: "Database") -> str:
    return f"{_name(database)}_schema"


def _config(database: "Database", connection: Connection) -> "Config":
    from alembic.config import Config

    config = Config()
    # The kit brings the machinery; a service's folder has nothing but revisions.
    config.set_main_option("script_location", "khomas.kit.database:history")
    config.set_main_option("version_locations", str(_folder(database)))
    config.set_main_option("path_separator", "newline")
    config.set_main_option("file_template", "%%(rev)s_%%(slug)s")
    config.attributes["khomas"] = {
        "connection": connection,
        "target_metadata": database.metadata,
        "version_table": _version_table(database),
        "render_as_batch": True,
        "render_item": _render,
    }
    return config


def _render(kind: str, item: Any, context: "AutogenContext") -> str | Literal[False]:
    if kind == "type" and type(item).__module__ == "khomas.kit.database.types":
        context.imports.add(f"from khomas.kit.database import {type(item).__name__}")
        return f"{type(item).__name__}()"
    return False
