"""Transfers as they go on, for callers that wait for them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from sqlalchemy import select

from khomas.api.storage.v1 import storage_service_pb2 as pb
from khomas.kit.database import Database, in_values
from khomas.storage.errors import TransferNotFound
from khomas.storage.rows import mappings
from khomas.storage.tables import transfer
from khomas.storage.transfers.transfers import ACTIVE, PREFIX, transfer_proto

_PAUSE_SECONDS: Final = 1.0
_MOST: Final = 1000


class Watching:
    """Reads what is watched once a second, with one statement, and tells what is new.

    How far an attempt is stands in the row alone: an event for every step would be many.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def watch(self, request: pb.WatchTransfersRequest) -> AsyncIterator[pb.WatchTransfersResponse]:
        """Tell of transfers until all are final; one that is pruned meanwhile was final, too."""
        left = {name.removeprefix(PREFIX) for name in request.names}
        told: dict[str, bytes] = {}
        while True:
            async with self._database.read() as connection:
                rows = mappings(await connection.execute(select(transfer).where(in_values(transfer.c.uid, left))))
            if not told and (missing := left - {row["uid"] for row in rows}):
                raise TransferNotFound(name=PREFIX + min(missing))
            changed = []
            for row in rows:
                message = transfer_proto(row)
                seen = message.SerializeToString(deterministic=True)
                if told.get(row["uid"]) != seen:
                    told[row["uid"]] = seen
                    changed.append(message)
            for start in range(0, len(changed), _MOST):
                yield pb.WatchTransfersResponse(transfers=changed[start : start + _MOST])
            left = {row["uid"] for row in rows if row["state"] in ACTIVE}
            if not left:
                return
            await asyncio.sleep(_PAUSE_SECONDS)
