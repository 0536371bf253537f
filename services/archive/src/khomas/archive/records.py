"""Reads the records and products of a release, a batch at a time, as of one moment."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, Table, select

from khomas.api.archive.v1 import archive_service_pb2, obscore_pb2
from khomas.api.archive.v1 import release_pb2 as pb
from khomas.archive.errors import ReleaseState
from khomas.archive.releases import OFFERED, Releases, State, wrong_state
from khomas.archive.rows import product_message, record_message
from khomas.archive.tables import product, record
from khomas.kit.auth.principal import allows
from khomas.kit.boundary.call import current_principal
from khomas.kit.database import AnyRow, Database

_BATCH: Final = 1000


class Records:
    """What a release that is ready has."""

    def __init__(self, database: Database, releases: Releases) -> None:
        self._database = database
        self._releases = releases

    async def stream(self, name: str) -> AsyncIterator[archive_service_pb2.StreamRecordsResponse]:
        """Answer StreamRecords; before it is published a release is for those who may make releases."""
        row = await self._releases.row(name)
        if row.state not in OFFERED:
            raise wrong_state(row)
        if row.state != State.STATE_PUBLISHED and not allows(current_principal(), "archive.write"):
            raise ReleaseState(f"{name} is not published yet.", name=name, state="READY")
        async for rows in self._batches(record, record.c.obs_publisher_did, row.uid):
            yield archive_service_pb2.StreamRecordsResponse(records=map(record_message, rows))

    async def records(self, release_uid: str) -> AsyncIterator[obscore_pb2.ObsCoreRecord]:
        """Yield all records by identifier."""
        async for rows in self._batches(record, record.c.obs_publisher_did, release_uid):
            for row in rows:
                yield record_message(row)

    async def products(self, release_uid: str) -> list[pb.Product]:
        """Return all products by name of the source."""
        return [
            product_message(row) async for rows in self._batches(product, product.c.source, release_uid) for row in rows
        ]

    async def _batches(
        self, table: Table, key: ColumnElement[Any], release_uid: str
    ) -> AsyncIterator[Sequence[AnyRow]]:
        """Read in the order of the key; rows of a release never change, so no snapshot is held for the reader."""
        query = select(table).where(table.c.release_uid == release_uid).order_by(key).limit(_BATCH)
        after = ""
        while True:
            async with self._database.read() as connection:
                rows = (await connection.execute(query.where(key > after))).all()
            if rows:
                yield rows
            if len(rows) < _BATCH:
                return
            after = getattr(rows[-1], key.key or "")
