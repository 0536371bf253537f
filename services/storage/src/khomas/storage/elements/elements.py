"""StorageElements as records, and the protocols that reach them."""

import asyncio
import difflib
import logging
import operator
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Row, select
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.storage.v1 import storage_element_pb2 as pb
from khomas.kit.credentials import CredentialProvider
from khomas.kit.database import Database, in_values
from khomas.kit.errors import FieldInvalid, NotInstalled
from khomas.kit.plugins import load_all
from khomas.storage.elements.access_points import AccessPoint
from khomas.storage.errors import (
    AddressInvalid,
    PathRefused,
    ProtocolUnknown,
    StorageElementNotFound,
    StorageElementUnreachable,
)
from khomas.storage.landing import tidy
from khomas.storage.protocols.interface import Access, Plugin, ProtocolFault, Room, StorageProtocol
from khomas.storage.rows import mapping
from khomas.storage.tables import storage_element

log = logging.getLogger(__name__)

PREFIX = "storageElements/"
_PROBE_SECONDS = 10.0
_KEEP_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Element:
    """A StorageElement as it is stored."""

    id: str
    uid: str
    description: str
    site: str
    media: int
    access_points: tuple[AccessPoint, ...]
    read_only: bool
    capacity_bytes: int
    create_time: datetime
    update_time: datetime
    version: int
    free_bytes: int
    reachable: bool
    message: str
    check_time: datetime
    labels: Mapping[str, str]
    weight: int
    high_watermark: int
    low_watermark: int
    draining: bool

    @property
    def takes_files(self) -> bool:
        """Tell whether copies may go there."""
        return not self.read_only and not self.draining

    @property
    def takes_uploads(self) -> bool:
        """Tell whether new files may go straight there: tape gets its files from disks."""
        return self.takes_files and self.media == pb.StorageElement.MEDIA_DISK


@dataclass(frozen=True, slots=True)
class Usage:
    """What we know that lies on a StorageElement or is on its way to it."""

    used_bytes: int = 0
    file_count: int = 0
    reserved_bytes: int = 0
    # Of those: wanted by rules, without a transfer yet.
    planned_bytes: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(*map(operator.add, astuple(self), astuple(other)))


def element_of(row: Row[Any]) -> Element:
    """Return a row of the table as a record."""
    values = dict(mapping(row))
    values["access_points"] = tuple(map(AccessPoint.stored, values["access_points"]))
    return Element(**values)


class Elements:
    """Reads StorageElements. There are tens, not thousands, and they hardly change: all are kept for a moment."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: Mapping[str, Element] = {}
        self._until = 0.0
        self._changes = 0

    async def all(self) -> Mapping[str, Element]:
        """Return all, by id in order; a change by another process is seen within two seconds."""
        if time.monotonic() < self._until:
            return self._known
        begun = self._changes
        query = select(storage_element).order_by(storage_element.c.id)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        found = {row.id: element_of(row) for row in rows}
        # What was read before a change is not kept after it.
        if begun == self._changes:
            self._known, self._until = found, time.monotonic() + _KEEP_SECONDS
        return found

    def forget(self) -> None:
        """Read again the next time: something was changed."""
        self._changes += 1
        self._until = 0.0


def known(elements: Mapping[str, Element], name: str) -> Element:
    """Return the one of this id, or raise StorageElementNotFound with the nearest ids."""
    if (element := elements.get(name)) is not None:
        return element
    nearest = difflib.get_close_matches(name, elements, n=3, cutoff=0.4) or list(elements)[:3]
    raise StorageElementNotFound(storage_element=name, nearest=nearest)


async def element_ids(connection: AsyncConnection) -> set[str]:
    """Return the ids of all, as this transaction sees them."""
    return set((await connection.scalars(select(storage_element.c.id))).all())


async def forgotten(connection: AsyncConnection, names: Collection[str]) -> set[str]:
    """Return which of these are not there any more; the others are kept until this transaction ends."""
    there = select(storage_element.c.id).where(in_values(storage_element.c.id, names))
    return set(names) - set((await connection.scalars(there.with_for_update(read=True, key_share=True))).all())


def element_proto(element: Element, usage: Usage) -> pb.StorageElement:
    """Return a StorageElement as callers see it."""
    message = pb.StorageElement(
        name=PREFIX + element.id,
        description=element.description,
        site=element.site,
        media=pb.StorageElement.Media.ValueType(element.media),
        access_points=[point.message() for point in element.access_points],
        read_only=element.read_only,
        capacity_bytes=element.capacity_bytes,
        etag=str(element.version),
        uid=element.uid,
        labels=element.labels,
        weight=element.weight,
        high_watermark=element.high_watermark,
        low_watermark=element.low_watermark,
        draining=element.draining,
    )
    message.create_time.FromDatetime(element.create_time)
    message.update_time.FromDatetime(element.update_time)
    message.health.reachable = element.reachable
    message.health.message = element.message
    message.health.check_time.FromDatetime(element.check_time)
    message.space.used_bytes = usage.used_bytes
    message.space.file_count = usage.file_count
    message.space.reserved_bytes = usage.reserved_bytes
    message.space.planned_bytes = usage.planned_bytes
    message.space.free_bytes = element.free_bytes
    message.space.observe_time.FromDatetime(element.check_time)
    return message


class Protocols:
    """The open protocols of all StorageElements."""

    def __init__(
        self, plugins: Mapping[str, Plugin], credentials: Mapping[str, CredentialProvider], *, durable: bool = False
    ) -> None:
        self._plugins = plugins
        self._credentials = credentials
        self._durable = durable
        self._open: dict[tuple[AccessPoint, bool], StorageProtocol] = {}

    @classmethod
    def installed(cls, credentials: Mapping[str, CredentialProvider], *, durable: bool = False) -> "Protocols":
        """Find the plug-ins of the entry-point group."""
        return cls(load_all("khomas.storage.protocols"), credentials, durable=durable)

    def check(self, access_points: Iterable[AccessPoint]) -> None:
        """Raise ProtocolUnknown, AddressInvalid or FieldInvalid for access points that cannot be used."""
        for number, point in enumerate(access_points):
            if point.protocol not in self._plugins:
                raise ProtocolUnknown(protocol=point.protocol, nearest=sorted(self._plugins))
            if point.credential and point.credential not in self._credentials:
                there = ", ".join(sorted(self._credentials)) or "none"
                field = f"storage_element.access_points[{number}].credential"
                raise FieldInvalid.of(field, f"the settings of the storage name no such credential; there is {there}")
            try:
                self._opened(point, read_only=False)
            except ValueError as error:
                message = f"The address {point.address} cannot be used: {error}."
                raise AddressInvalid(message, address=point.address) from error

    def of(self, element: Element) -> StorageProtocol:
        """Return the first protocol of a StorageElement that is installed."""
        for point in element.access_points:
            if point.protocol in self._plugins:
                key = (point, element.read_only)
                if key not in self._open:
                    self._open[key] = self._opened(point, read_only=element.read_only)
                return self._open[key]
        raise ProtocolUnknown(protocol=element.access_points[0].protocol, nearest=sorted(self._plugins))

    def _opened(self, point: AccessPoint, *, read_only: bool) -> StorageProtocol:
        access = Access(
            point.address,
            read_only=read_only,
            durable=self._durable,
            credential=self._credentials.get(point.credential),
            options=dict(point.options),
        )
        return self._plugins[point.protocol].open(access)

    def is_local(self, element: Element) -> bool:
        """Tell whether its files have paths on this machine."""
        try:
            return self.of(element).abilities.local
        except ProtocolUnknown:
            return False

    def local(self, element: Element, path: str) -> Path:
        """Return where a file lies on this machine, or raise PathRefused."""
        try:
            found = self.of(element).local_path(path)
        except ProtocolFault as fault:
            raise PathRefused(fault.message + ".", path=path) from fault
        if found is None:
            raise NotInstalled(needed=f"a way to reach the files of {element.id} on this machine")
        return found

    async def room(self, element: Element) -> Room:
        """Ask a storage for its space, or raise StorageElementUnreachable."""
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                return await self.of(element).space()
        except ProtocolFault as fault:
            message = fault.message
        except TimeoutError:
            message = f"no answer in {_PROBE_SECONDS:.0f} s"
        raise StorageElementUnreachable(storage_element=element.id, message=message)

    async def rooms(self, elements: Sequence[Element]) -> list[Room | StorageElementUnreachable]:
        """Ask many storages at once."""
        answers = await asyncio.gather(*map(self.room, elements), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, StorageElementUnreachable):
                raise answer
        return list(answers)  # type: ignore[arg-type]  # others are raised above

    async def tidy(self, age: timedelta) -> None:
        """Remove hidden files of this age: what they were for has died with a process."""
        before = datetime.now(UTC) - age
        for protocol in self._open.values():
            try:
                await tidy(protocol, before)
            except ProtocolFault as fault:
                log.warning("storage.untidy", extra={"error": fault.message})

    async def close(self) -> None:
        """End all connections."""
        await asyncio.gather(*(protocol.close() for protocol in self._open.values()))
