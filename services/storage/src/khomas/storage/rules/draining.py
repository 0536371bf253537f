"""Empties StorageElements: last copies are made elsewhere, what is not needed is deleted, rules move theirs."""

import logging
from collections.abc import Mapping, Sequence, Set
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from sqlalchemy import delete, select, update

from khomas.api.catalog.v1 import file_pb2
from khomas.api.storage.v1 import drain_pb2, transfer_pb2
from khomas.api.storage.v1.storage_element_pb2 import StorageElement
from khomas.kit.database import Database, in_values
from khomas.kit.errors import DomainError
from khomas.kit.events import EventLog
from khomas.kit.leases import FREE, claim
from khomas.storage.catalog import Catalog
from khomas.storage.elements.elements import Elements
from khomas.storage.elements.emptiness import Emptiness, unchanged
from khomas.storage.elements.space import usages
from khomas.storage.errors import LastReplica, StorageElementNotEmpty
from khomas.storage.rows import mapping
from khomas.storage.rules.drain_store import move_copies, told
from khomas.storage.rules.elements import places_of
from khomas.storage.rules.placing import Copy, CopyState, Located, Place, Placer
from khomas.storage.rules.protection import ReplicaKey, good_replicas
from khomas.storage.rules.removal import remove
from khomas.storage.rules.starting import Starting
from khomas.storage.rules.tables import drain
from khomas.storage.tables import deletion, replica, storage_element, transfer

log = logging.getLogger(__name__)

State = drain_pb2.Drain.State
_BATCH = 500
_ACTIVE = (transfer_pb2.Transfer.STATE_WAITING, transfer_pb2.Transfer.STATE_RUNNING)


class Draining:
    """Works on drains, a batch of files at a time."""

    def __init__(
        self,
        database: Database,
        event_log: EventLog,
        elements: Elements,
        emptiness: Emptiness,
        catalog: Catalog,
        starting: Starting,
        *,
        owner: str,
        lease: timedelta,
        pause: timedelta,
    ) -> None:
        self._database = database
        self._log = event_log
        self._elements = elements
        self._emptiness = emptiness
        self._catalog = catalog
        self._starting = starting
        self._owner = owner
        self._lease = lease
        self._pause = pause

    async def work(self) -> None:
        """Do a round of everything that is due."""
        while (row := await self._claim()) is not None:
            try:
                await self._round(row)
            except (DomainError, grpc.aio.AioRpcError) as error:
                log.warning("drain.postponed", extra={"drain": row["id"], "error": str(error)})
                await self._release(row, row["message"])

    async def _claim(self) -> Mapping[str, Any] | None:
        now = datetime.now(UTC)
        due = select(drain.c.id).where(drain.c.state == State.STATE_DRAINING, drain.c.due_time <= now).limit(1)
        async with self._database.read() as connection:
            if (await connection.execute(due)).first() is None:
                return None
        async with self._database.write() as connection:
            rows = await claim(connection, drain, due, owner=self._owner, now=now, until=now + self._lease)
        return mapping(rows[0]) if rows else None

    async def _round(self, row: Mapping[str, Any]) -> None:
        """Go once through everything that lies there, then see whether it is empty."""
        after, stuck = "", 0
        async with self._database.write() as connection:
            await move_copies(connection, row["id"])
        while uids := await self._next(row["id"], after):
            after = uids[-1]
            stuck += await self._leave(row, uids)
        came = await self._emptiness.looked(row["id"]) if not stuck else None
        if came is not None:
            await self._end(row, came)
        else:
            await self._release(row, f"{stuck} files have no place to go to or no good copy" if stuck else "")

    async def _next(self, name: str, after: str) -> list[str]:
        """Return the next files that lie there and that nobody deletes yet."""
        waiting = select(deletion.c.uid).where(
            deletion.c.file_uid == replica.c.file_uid,
            deletion.c.storage_element == name,
            deletion.c.state == transfer_pb2.Deletion.STATE_WAITING,
        )
        here = (replica.c.storage_element == name, replica.c.file_uid > after)
        query = select(replica.c.file_uid).where(*here, ~waiting.exists()).order_by(replica.c.file_uid).limit(_BATCH)
        async with self._database.read() as connection:
            return list((await connection.scalars(query)).all())

    async def _leave(self, row: Mapping[str, Any], uids: Sequence[str]) -> int:
        """Delete what is not needed, copy elsewhere what is nowhere else; return how many cannot be copied."""
        found = await self._catalog.files([f"files/{uid}" for uid in uids])
        files = {one.file.uid: one.file for one in found if one.file.state == file_pb2.File.STATE_ACTIVE}
        keys = [ReplicaKey(uid, row["id"]) for uid in files]
        async with self._database.write() as connection:
            refused = await remove(connection, self._log, keys, files)
        last = [files[key.file_uid] for key, error in refused.items() if isinstance(error, LastReplica)]
        return await self._rescue(row, last) if last else 0

    async def _rescue(self, row: Mapping[str, Any], files: Sequence[file_pb2.File]) -> int:
        """Make a copy elsewhere of files that are nowhere else; return for how many that is not possible."""
        under_way = select(transfer.c.file_uid).where(
            transfer.c.origin == row["uid"],
            in_values(transfer.c.file_uid, [file.uid for file in files]),
            transfer.c.state.in_(_ACTIVE),
        )
        async with self._database.read() as connection:
            moving = set((await connection.scalars(under_way)).all())
            used = await usages(connection)
        self._elements.forget()
        elements = await self._elements.all()
        media = StorageElement.Media.Name(StorageElement.Media.ValueType(elements[row["id"]].media))
        places = places_of(f"media={media.removeprefix('MEDIA_')}", elements, used)
        placer = Placer(places if any(one.takes_files for one in places) else places_of("*", elements, used))
        wanted, stuck = list[Copy](), 0
        for file in files:
            there = frozenset(good_replicas(file, elements))
            place = placer.choose(Located(file.uid, file.name, file.size_bytes, there), (), ())
            if file.uid in moving:
                continue
            if isinstance(place, Place):
                wanted.append(Copy(file.uid, 0, file.name, file.size_bytes, place.id))
            else:
                stuck += 1
        if wanted:
            cause = {"uid": row["uid"], "owner": row["owner"], "priority": 0, "share": ""}
            started = await self._starting.start(cause, wanted)
            stuck += sum(copy.state == CopyState.STUCK for copy in started)
        return stuck

    async def _end(self, row: Mapping[str, Any], came: Set[str]) -> None:
        gone = row["decommission"]
        state = State.STATE_DECOMMISSIONED if gone else State.STATE_DRAINED
        ended = {"state": state, "end_time": datetime.now(UTC), "message": "", **FREE}
        async with self._database.write() as connection:
            statement = update(drain).where(*_held(row), drain.c.state == State.STATE_DRAINING)
            if not (await connection.execute(statement.values(ended))).rowcount:
                return
            if gone:
                await connection.execute(delete(storage_element).where(storage_element.c.id == row["id"]))
            if not await unchanged(connection, row["id"], came):
                raise StorageElementNotEmpty(storage_element=row["id"], file_count=0)
            await told(connection, self._log, row["id"])
        self._elements.forget()

    async def _release(self, row: Mapping[str, Any], message: str) -> None:
        later = {"due_time": datetime.now(UTC) + self._pause, "message": message, **FREE}
        async with self._database.write() as connection:
            await connection.execute(update(drain).where(*_held(row)).values(later))
            if message != row["message"]:
                await told(connection, self._log, row["id"])


def _held(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return drain.c.id == row["id"], drain.c.lease_epoch == row["lease_epoch"]
