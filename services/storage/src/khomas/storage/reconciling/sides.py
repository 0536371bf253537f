"""Both sides of a comparison in the database, and what differs between them."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Select, and_, delete, func, select

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.kit.database import Database, Rows, insert_rows
from khomas.storage.protocols.interface import Entry
from khomas.storage.reconciling.tables import expected_replica, found_file

_PAGE: Final = 500
_EXPECTED = ("run_uid", "file_uid", "path", "size_bytes", "adler32")
_FOUND = ("run_uid", "path", "size_bytes", "modify_time")
_expected, _found = expected_replica.c, found_file.c
_SAME = and_(_expected.run_uid == _found.run_uid, _expected.path == _found.path)
_MISSING = _found.path.is_(None)
_UNKNOWN = _expected.path.is_(None)
_WANTED = (_expected.file_uid, _expected.path, _expected.size_bytes, _expected.adler32)
_LEFT = expected_replica.outerjoin(found_file, _SAME)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A replica as the catalogue had it when it was listed."""

    file_uid: str
    path: str
    size_bytes: int
    adler32: str


@dataclass(frozen=True, slots=True)
class Totals:
    """How much lies on either side, and how much of it seems lost."""

    expected: int
    found: int
    found_bytes: int
    missing: int


class Sides:
    """The rows of one comparison."""

    def __init__(self, database: Database, run: str) -> None:
        self._database = database
        self._run = run

    async def clear(self) -> None:
        """Forget both."""
        async with self._database.write() as connection:
            await connection.execute(delete(expected_replica).where(_expected.run_uid == self._run))
            await connection.execute(delete(found_file).where(_found.run_uid == self._run))

    async def expect(self, files: Sequence[catalog_pb.LocatedFile]) -> None:
        """Add what the catalogue has there."""
        rows = [(self._run, one.uid, one.replica.path, one.size_bytes, one.adler32) for one in files]
        await self._add(Rows(expected_replica, _EXPECTED, rows))

    async def find(self, entries: Sequence[Entry]) -> None:
        """Add what lies there."""
        rows = [(self._run, one.path, one.size_bytes, one.modify_time) for one in entries]
        await self._add(Rows(found_file, _FOUND, rows))

    async def totals(self) -> Totals:
        """Count."""
        expected = select(func.count()).where(_expected.run_uid == self._run)
        found = select(func.count(), func.coalesce(func.sum(_found.size_bytes), 0)).where(_found.run_uid == self._run)
        missing = select(func.count()).select_from(_LEFT).where(_expected.run_uid == self._run, _MISSING)
        async with self._database.read() as connection:
            there, size_bytes = (await connection.execute(found)).one()
            return Totals(
                expected=(await connection.execute(expected)).scalar_one(),
                found=there,
                found_bytes=int(size_bytes),
                missing=(await connection.execute(missing)).scalar_one(),
            )

    def different(self) -> AsyncGenerator[list[Wanted], None]:
        """Yield what is missing or of another size."""
        differs = _MISSING | (_expected.size_bytes != _found.size_bytes)
        return self._pages(_ours(select(*_WANTED).select_from(_LEFT).where(differs), self._run))

    def alike(self, after: str) -> AsyncGenerator[list[Wanted], None]:
        """Yield what has the right size, after a path."""
        alike = select(*_WANTED).select_from(expected_replica.join(found_file, _SAME))
        return self._pages(_ours(alike.where(_expected.size_bytes == _found.size_bytes), self._run), after)

    async def unknown(self) -> AsyncGenerator[list[str], None]:
        """Yield paths that only lie there."""
        query = select(_found.path).select_from(found_file.outerjoin(expected_replica, _SAME))
        query, after = query.where(_found.run_uid == self._run, _UNKNOWN).order_by(_found.path).limit(_PAGE), ""
        while True:
            async with self._database.read() as connection:
                paths = list((await connection.scalars(query.where(_found.path > after))).all())
            if not paths:
                return
            yield paths
            after = paths[-1]

    async def _pages(self, query: Select[Any], after: str = "") -> AsyncGenerator[list[Wanted], None]:
        # Two files may share a path: a page ends with the last of them.
        while True:
            async with self._database.read() as connection:
                rows = (await connection.execute(query.where(_expected.path > after).limit(_PAGE))).all()
                if len(rows) == _PAGE:
                    last = query.where(_expected.path == rows[-1].path)
                    rest = (await connection.execute(last)).all()
                    rows = [*(row for row in rows if row.path != rows[-1].path), *rest]
            if not rows:
                return
            yield [Wanted(*row) for row in rows]
            after = rows[-1].path

    async def _add(self, rows: Rows) -> None:
        async with self._database.write() as connection:
            await insert_rows(connection, rows, skip_existing=True)


def _ours(query: Select[Any], run: str) -> Select[Any]:
    return query.where(_expected.run_uid == run).order_by(_expected.path)
