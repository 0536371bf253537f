"""Directories: made with the first file in them, found by path."""

from collections.abc import Iterator, Mapping

from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.catalog.names import directory_of, with_ancestors
from khomas.catalog.tables import directory
from khomas.kit.database import Database, Rows

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

    def made(
        self, connection: AsyncConnection, unknown: set[str], found: Mapping[str, int], unused: Iterator[int]
    ) -> tuple[Mapping[str, int], Rows]:
        """Return the ids of all directories, and what to insert for those that neither are known nor were found."""
        new = dict(zip(sorted(unknown - found.keys()), unused, strict=False))
        ids = {**self._known, **found, **new} if unknown else self._known
        if unknown:
            # Only once they are committed; a transaction that fails takes its directories with it.
            self._database.after_commit(connection, lambda: self._remember({**found, **new}))
        return ids, Rows(
            directory,
            ("id", "path", "parent_id"),
            [(id_, path, ids.get(directory_of(path))) for path, id_ in new.items()],
        )

    def _remember(self, found: Mapping[str, int]) -> None:
        if len(self._known) + len(found) > _MAX_KNOWN:
            self._known.clear()
        self._known.update(found)
