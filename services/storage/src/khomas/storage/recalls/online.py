"""Which copies on tape can be read now, for whoever in this service reads."""

from collections.abc import Collection, Iterable, Sequence
from datetime import timedelta

from sqlalchemy import select

from khomas.api.catalog.v1 import file_pb2
from khomas.api.storage.v1 import storage_element_pb2
from khomas.kit.database import Database, in_values
from khomas.kit.errors import DomainError
from khomas.kit.events import EventLog
from khomas.storage.elements.elements import Element, Elements, Protocols
from khomas.storage.recalls.messages import State
from khomas.storage.recalls.tables import recall
from khomas.storage.recalls.wanting import Wanted, on_tape, stored


class Online:
    """Knows what was recalled and is still on disk."""

    def __init__(
        self, database: Database, log: EventLog, elements: Elements, protocols: Protocols, lifetime: timedelta
    ) -> None:
        self._database = database
        self._log = log
        self._elements = elements
        self._protocols = protocols
        self._lifetime = lifetime

    async def offline(self, files: Iterable[file_pb2.File]) -> frozenset[tuple[str, str]]:
        """Return the replicas of these files, as uid and StorageElement, that have to be recalled before they are read.

        One statement for any number of files, and none where no copy is on tape.
        """
        elements = await self._elements.all()
        tapes = {one.id for one in elements.values() if self._recalls(one)}
        pairs = {
            (file.uid, replica.storage_element)
            for file in files
            for replica in file.replicas
            if replica.storage_element in tapes
        }
        return frozenset(pairs - await self._there(pairs)) if pairs else frozenset()

    def _recalls(self, element: Element) -> bool:
        """Tell whether its files have to be recalled; what is mounted and recalls by itself is simply read."""
        if element.media != storage_element_pb2.StorageElement.MEDIA_TAPE:
            return False
        try:
            return self._protocols.of(element).tape is not None
        except (DomainError, ValueError):
            # It cannot be read now in any case.
            return True

    async def want(self, files: Sequence[file_pb2.File]) -> None:
        """Have files recalled for the service itself."""
        if not files:
            return
        elements = await self._elements.all()
        found = [on_tape(file, elements) for file in files]
        wanted = {one.key: one for one in found if isinstance(one, Wanted)}
        async with self._database.write() as connection:
            await stored(connection, self._log, list(wanted.values()), "", "storage", self._lifetime)

    async def _there(self, pairs: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
        keys = [f"{element}/{uid}" for uid, element in pairs]
        query = select(recall.c.file_uid, recall.c.storage_element).where(
            in_values(recall.c.active_key, keys), recall.c.state == State.STATE_ONLINE
        )
        async with self._database.read() as connection:
            return {(row.file_uid, row.storage_element) for row in (await connection.execute(query)).all()}
