"""Which copies on tape can be read now."""

from collections.abc import Collection, Iterable

from sqlalchemy import select

from khomas.api.catalog.v1 import file_pb2
from khomas.api.storage.v1 import storage_element_pb2
from khomas.kit.database import Database, in_values
from khomas.storage.elements import Elements
from khomas.storage.recalls.messages import State
from khomas.storage.recalls.tables import recall


class Online:
    """Knows what was recalled and is still on disk."""

    def __init__(self, database: Database, elements: Elements) -> None:
        self._database = database
        self._elements = elements

    async def offline(self, files: Iterable[file_pb2.File]) -> frozenset[tuple[str, str]]:
        """Return the replicas of these files, as uid and StorageElement, that have to be recalled before they are read.

        One statement for any number of files, and none where no copy is on tape.
        """
        elements = await self._elements.all()
        tapes = {one.id for one in elements.values() if one.media == storage_element_pb2.StorageElement.MEDIA_TAPE}
        pairs = {
            (file.uid, replica.storage_element)
            for file in files
            for replica in file.replicas
            if replica.storage_element in tapes
        }
        return frozenset(pairs - await self._there(pairs)) if pairs else frozenset()

    async def _there(self, pairs: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
        keys = [f"{element}/{uid}" for uid, element in pairs]
        query = select(recall.c.file_uid, recall.c.storage_element).where(
            in_values(recall.c.active_key, keys), recall.c.state == State.STATE_ONLINE
        )
        async with self._database.read() as connection:
            return {(row.file_uid, row.storage_element) for row in (await connection.execute(query)).all()}
