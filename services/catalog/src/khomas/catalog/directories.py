"""Directories: made with the first file in them, found by path."""

from collections.abc import Mapping

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.catalog.names import directory_of, with_ancestors
from khomas.catalog.tables import directory
from khomas.kit.database import Database, in_values, insert_new, rows_table

_MAX_KNOWN = 100_000


class Directories:
    """Knows directories by path; they are never removed, so what is known stays right."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[str, int] = {}

    def unknown(self, paths: set[str]) -> set[str]:
        """Return those paths, and what they lie in, that may have to be made."""
        missing = paths - self._known.keys()
        return with_ancestors(missing) - self._known.keys() if missing else set()

    async def ensure(self, connection: AsyncConnection, paths: set[str]) -> Mapping[str, int]:
        """Return the ids of directories, making those that are missing. No statement when all are known."""
        wanted = self.unknown(paths)
        if not wanted:
            return self._known
        made = await insert_new(connection, directory, [{"path": path} for path in sorted(wanted)], directory.c.id)
        rows = await connection.execute(
            select(directory.c.path, directory.c.id).where(in_values(directory.c.path, wanted))
        )
        found = {row.path: row.id for row in rows}
        ids = {**self._known, **found}
        if made:
            await self._link(connection, [path for path in found if path != "/"], ids)
        # Only once they are committed; a transaction that fails takes its directories with it.
        self._database.after_commit(connection, lambda: self._remember(found))
        return ids

    def _remember(self, found: Mapping[str, int]) -> None:
        if len(self._known) + len(found) > _MAX_KNOWN:
            self._known.clear()
        self._known.update(found)

    @staticmethod
    async def _link(connection: AsyncConnection, paths: list[str], ids: Mapping[str, int]) -> None:
        if not paths:
            return
        columns = {"id": directory.c.id.type, "parent_id": directory.c.id.type}
        links = rows_table(connection, columns, [(ids[path], ids[directory_of(path)]) for path in paths])
        await connection.execute(
            update(directory).values(parent_id=links.c.parent_id).where(directory.c.id == links.c.id)
        )
