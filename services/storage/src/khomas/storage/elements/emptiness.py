"""Whether a StorageElement may be forgotten: nothing is there, is going there or is wanted there.

The catalogue has the last word on what is there, but it is asked before the transaction that forgets. What came there
in between had a state in our own database: it is under way still, or it was not done yet before the question.
"""

from collections.abc import Set
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import Select, func, or_, select, union_all
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.storage.v1 import grant_pb2, transfer_pb2
from khomas.kit.database import Database
from khomas.storage.catalog import Catalog
from khomas.storage.rules.tables import rule_copy
from khomas.storage.tables import deletion, replica, transfer, upload

# Far longer than the question takes; the clocks of processes differ less.
_LATE: Final = timedelta(minutes=10)
_ACTIVE: Final = (transfer_pb2.Transfer.STATE_WAITING, transfer_pb2.Transfer.STATE_RUNNING)


@dataclass(frozen=True, slots=True)
class Emptiness:
    """Looks whether StorageElements are empty."""

    database: Database
    catalog: Catalog

    async def looked(self, name: str) -> Set[str] | None:
        """Return what has come to one of late, for `unchanged`, if it is empty; None if it is not."""
        async with self.database.read() as connection:
            came = await _came(connection, name)
            if await _in_use(connection, name):
                return None
        # In one question, which is of one moment: a file may change from one state to the other.
        request = catalog_pb.ListFilesRequest(page_size=1, view=catalog_pb.FILE_VIEW_BASIC)
        request.filter = f'storage_element = "{name}" AND (state = ACTIVE OR state = DELETING)'
        return None if (await self.catalog.list_files(request)).files else came


async def unchanged(connection: AsyncConnection, name: str, came: Set[str]) -> bool:
    """Tell whether one is still empty; nothing new begins there once the transaction has deleted its row."""
    return not await _in_use(connection, name) and await _came(connection, name) <= came


def kept_for_rules(name: str) -> Select[int]:
    """Count the copies that rules still have on a StorageElement."""
    return select(func.count()).where(or_(rule_copy.c.storage_element == name, rule_copy.c.moving_from == name))


async def _in_use(connection: AsyncConnection, name: str) -> bool:
    waiting = deletion.c.state == transfer_pb2.Deletion.STATE_WAITING
    counted = (
        select(func.count()).where(replica.c.storage_element == name),
        select(func.count()).where(deletion.c.storage_element == name, waiting),
        select(func.count()).where(transfer.c.destination == name, transfer.c.state.in_(_ACTIVE)),
        select(func.count()).where(upload.c.storage_element == name, upload.c.state == grant_pb2.Upload.STATE_OPEN),
        kept_for_rules(name),
    )
    for query in counted:
        if (await connection.execute(query)).scalar_one():
            return True
    return False


async def _came(connection: AsyncConnection, name: str) -> Set[str]:
    """Return what may have brought files there of late and is done, so that the catalogue knows them."""
    recent = datetime.now(UTC) - _LATE
    committed = (upload.c.state == grant_pb2.Upload.STATE_COMMITTED, upload.c.create_time > recent)
    query = union_all(
        select(upload.c.uid).where(upload.c.storage_element == name, *committed),
        select(transfer.c.uid).where(transfer.c.destination == name, transfer.c.end_time > recent),
    )
    return set((await connection.scalars(query)).all())
