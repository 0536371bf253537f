"""How full StorageElements are, and which of them takes the next file."""

import time
from collections.abc import Mapping, Sequence

from sqlalchemy import ColumnElement, Select, case, func, literal, select, union_all
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.storage.v1 import grant_pb2, rule_pb2, transfer_pb2
from khomas.kit.errors import DomainError
from khomas.storage.elements.elements import Element, Usage, known
from khomas.storage.errors import NoSpace, StorageElementReadOnly
from khomas.storage.protocols.interface import Room
from khomas.storage.rules.tables import rule_copy
from khomas.storage.tables import space, transfer, upload, uploaded_file

_KEEP_SECONDS = 1.0
# A name and four numbers in the order of Usage.
_Part = Select[str, int, int, int, int]
_NONE: ColumnElement[int] = literal(0)
_UNDER_WAY = (transfer_pb2.Transfer.STATE_WAITING, transfer_pb2.Transfer.STATE_RUNNING)


async def usages(connection: AsyncConnection) -> dict[str, Usage]:
    """Add up, for each StorageElement, its replicas, its open uploads and what is on its way to it or going to be."""
    return await _sums(connection, _catalogued(), _uploading(), _moving(), _planned())


class Usages:
    """Adds up the same for whoever asks often.

    What is on its way is added up once a second: it may be a hundred thousand transfers.
    """

    def __init__(self) -> None:
        self._coming: dict[str, Usage] = {}
        self._until = 0.0

    async def read(self, connection: AsyncConnection) -> dict[str, Usage]:
        """Return what `usages` returns, or did a second ago."""
        if time.monotonic() >= self._until:
            self._coming = await _sums(connection, _moving(), _planned())
            self._until = time.monotonic() + _KEEP_SECONDS
        there = await _sums(connection, _catalogued(), _uploading())
        names = there.keys() | self._coming.keys()
        return {name: there.get(name, Usage()) + self._coming.get(name, Usage()) for name in names}


async def _sums(connection: AsyncConnection, *parts: _Part) -> dict[str, Usage]:
    name, *numbers = union_all(*parts).subquery().c
    query = select(name, *map(func.sum, numbers)).group_by(name)
    return {row[0]: Usage(*map(int, row[1:])) for row in (await connection.execute(query)).all()}


def _part(
    name: ColumnElement[str],
    used: ColumnElement[int] = _NONE,
    files: ColumnElement[int] = _NONE,
    reserved: ColumnElement[int] = _NONE,
    planned: ColumnElement[int] = _NONE,
) -> _Part:
    return select(name, used.label("used"), files.label("files"), reserved.label("reserved"), planned.label("planned"))


def _catalogued() -> _Part:
    return _part(space.c.storage_element, used=space.c.used_bytes, files=space.c.file_count)


def _uploading() -> _Part:
    """Count what has arrived as used, and of the reservation only what is still to come."""
    size = func.coalesce(func.sum(uploaded_file.c.size_bytes), 0)
    to_come = case((upload.c.reserve_bytes > size, upload.c.reserve_bytes - size), else_=0)
    arrived = func.count(uploaded_file.c.number)
    return (
        _part(upload.c.storage_element, used=size, files=arrived, reserved=to_come)
        .select_from(upload.outerjoin(uploaded_file, uploaded_file.c.upload_uid == upload.c.uid))
        .where(upload.c.state == grant_pb2.Upload.STATE_OPEN)
        .group_by(upload.c.uid, upload.c.storage_element, upload.c.reserve_bytes)
    )


def _moving() -> _Part:
    part = _part(transfer.c.destination, reserved=transfer.c.size_bytes)
    return part.where(transfer.c.state.in_(_UNDER_WAY))


def _planned() -> _Part:
    size = rule_copy.c.size_bytes
    part = _part(rule_copy.c.storage_element, reserved=size, planned=size)
    return part.where(rule_copy.c.state == rule_pb2.ReplicationRule.STATE_REPLICATING, rule_copy.c.transfer_uid == "")


def available(element: Element, usage: Usage, room: Room) -> int | None:
    """Return how many bytes may still be promised there; None if nobody can tell."""
    limits = [room.free_bytes] if room.free_bytes is not None else []
    if element.capacity_bytes:
        limits.append(element.capacity_bytes - usage.used_bytes)
    return min(limits) - usage.reserved_bytes if limits else None


class Chooser:
    """Chooses StorageElements for new files, and remembers what it has promised."""

    def __init__(
        self,
        elements: Mapping[str, Element],
        free: Mapping[str, int | DomainError | None],
        default: str,
    ) -> None:
        self._elements = elements
        self._free = dict(free)
        self._default = default

    def choose(self, wanted: Sequence[str], need_bytes: int) -> Element:
        """Return the first of the wanted ones that has the space; raise why there is none."""
        problem: DomainError | None = None
        for name in wanted or (self._default,):
            element = known(self._elements, name)
            refusal = self._refusal(element, need_bytes)
            if refusal is None:
                free = self._free[name]
                self._free[name] = free - need_bytes if isinstance(free, int) else free
                return element
            problem = problem or refusal
        assert problem is not None
        raise problem

    def _refusal(self, element: Element, need_bytes: int) -> DomainError | None:
        if not element.takes_uploads:
            return StorageElementReadOnly(storage_element=element.id)
        free = self._free[element.id]
        if isinstance(free, DomainError):
            return free
        # A full storage takes nothing, even if nothing is reserved.
        if free is not None and free < max(need_bytes, 1):
            return NoSpace(storage_element=element.id, free_bytes=max(free, 0))
        return None


def default_element(elements: Mapping[str, Element], preferred: str) -> str:
    """Return where files go for which nobody wants a place."""
    if preferred in elements:
        return preferred
    return next((name for name, element in elements.items() if element.takes_uploads), preferred)
