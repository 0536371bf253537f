"""Cleaning of caches: what nobody protects and what is elsewhere, too, goes when an element is too full."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import grpc
from sqlalchemy import func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import aliased

from khomas.api.catalog.v1 import file_pb2
from khomas.api.storage.v1 import transfer_pb2
from khomas.kit.database import Database
from khomas.kit.errors import DomainError
from khomas.kit.events import EventLog
from khomas.storage.catalog import Catalog
from khomas.storage.elements.elements import Element, Elements, Usage
from khomas.storage.elements.space import usages
from khomas.storage.rules.protection import ReplicaKey, good_replicas
from khomas.storage.rules.removal import remove
from khomas.storage.rules.tables import replica_access, rule_copy
from khomas.storage.tables import deletion, replica, storage_element

log = logging.getLogger(__name__)

_BATCH = 1000
_DEFAULT_GAP = 10


@dataclass(frozen=True, slots=True)
class Cached:
    """A replica on a StorageElement that is too full."""

    file_uid: str
    size_bytes: int
    # Good replicas elsewhere.
    others: int
    protected: bool = False


def chosen(oldest_first: Sequence[Cached], need_bytes: int) -> list[Cached]:
    """Return what is to go, oldest access first: never what is protected, never the last good copy."""
    going: list[Cached] = []
    for one in oldest_first:
        if need_bytes <= 0:
            break
        if one.protected or not one.others:
            continue
        going.append(one)
        need_bytes -= one.size_bytes
    return going


def bytes_to_free(element: Element, usage: Usage) -> int:
    """Return how many bytes must go, 0 where nobody wants that or it is not too full."""
    capacity = element.capacity_bytes or (usage.used_bytes + element.free_bytes if element.free_bytes >= 0 else 0)
    if not element.high_watermark or not capacity or element.read_only:
        return 0
    full = usage.used_bytes + usage.reserved_bytes
    if full * 100 <= capacity * element.high_watermark:
        return 0
    low = element.low_watermark or max(element.high_watermark - _DEFAULT_GAP, 0)
    return full - capacity * min(low, element.high_watermark) // 100


class Cleaning:
    """Keeps StorageElements below their watermarks."""

    def __init__(self, database: Database, log: EventLog, elements: Elements, catalog: Catalog) -> None:
        self._database = database
        self._log = log
        self._elements = elements
        self._catalog = catalog

    async def work(self) -> None:
        """Look at all StorageElements once."""
        elements = [element for element in (await self._elements.all()).values() if element.high_watermark]
        if not elements:
            return
        async with self._database.read() as connection:
            used = await usages(connection)
        for element in elements:
            need = bytes_to_free(element, used.get(element.id, Usage()))
            if need:
                try:
                    await self._clean(element.id, need)
                except (DomainError, grpc.aio.AioRpcError) as error:
                    # The catalogue does not answer: there is a next time.
                    log.warning("cache.postponed", extra={"storage_element": element.id, "error": str(error)})

    async def _clean(self, name: str, need_bytes: int) -> None:
        async with self._database.read() as connection:
            need_bytes -= await _going(connection, name)
            known = await _oldest(connection, name) if need_bytes > 0 else {}
        if not known:
            return
        found = await self._catalog.files([f"files/{uid}" for uid in known])
        files = {one.file.uid: one.file for one in found if one.file.state == file_pb2.File.STATE_ACTIVE}
        elements = await self._elements.all()
        cached = [
            Cached(uid, size_bytes, len(good_replicas(files[uid], elements) - {name}))
            for uid, size_bytes in known.items()
            if uid in files
        ]
        keys = [ReplicaKey(one.file_uid, name) for one in chosen(cached, need_bytes)]
        async with self._database.write() as connection:
            await remove(connection, self._log, keys, files)


async def _going(connection: AsyncConnection, name: str) -> int:
    """Return the bytes that are being deleted on a StorageElement already."""
    same = (deletion.c.file_uid == replica.c.file_uid, deletion.c.storage_element == replica.c.storage_element)
    waiting = select(deletion.c.uid).where(*same, deletion.c.state == transfer_pb2.Deletion.STATE_WAITING)
    query = select(func.coalesce(func.sum(replica.c.size_bytes), 0))
    return int(
        (await connection.execute(query.where(replica.c.storage_element == name, waiting.exists()))).scalar_one()
    )


async def _oldest(connection: AsyncConnection, name: str) -> Mapping[str, int]:
    """Return replicas that may go as far as we know, oldest access first; those never read by their age."""
    columns, other = replica.c, aliased(replica)
    seen = (replica_access.c.file_uid == columns.file_uid, replica_access.c.storage_element == columns.storage_element)
    access = select(replica_access.c.access_time).where(*seen).scalar_subquery()
    wanted = select(rule_copy.c.number).where(
        rule_copy.c.file_uid == columns.file_uid,
        or_(rule_copy.c.storage_element == name, rule_copy.c.moving_from == name),
    )
    going = select(deletion.c.uid).where(
        deletion.c.file_uid == columns.file_uid, deletion.c.state == transfer_pb2.Deletion.STATE_WAITING
    )
    elsewhere = select(other.c.path).where(
        other.c.file_uid == columns.file_uid,
        other.c.storage_element != name,
        other.c.storage_element.in_(select(storage_element.c.id)),
        other.c.state == file_pb2.Replica.STATE_AVAILABLE,
    )
    query = (
        select(columns.file_uid, columns.size_bytes)
        .where(columns.storage_element == name, ~wanted.exists(), ~going.exists(), elsewhere.exists())
        .order_by(access.asc().nulls_first(), columns.file_uid)
        .limit(_BATCH)
    )
    return {row.file_uid: row.size_bytes for row in (await connection.execute(query)).all()}
