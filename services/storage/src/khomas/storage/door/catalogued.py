"""What may not be touched through the tree: files of our own catalogue, and those on their way into it."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from sqlalchemy import ColumnElement, Select, and_, or_, select

from khomas.api.storage.v1 import transfer_pb2
from khomas.kit.database import Database
from khomas.storage.door.refusal import Refusal
from khomas.storage.elements.elements import Elements, Protocols
from khomas.storage.known_replicas import known_until
from khomas.storage.paths import PRIVATE
from khomas.storage.tables import replica, transfer, upload_commit

# The news of a commit reach the table of replicas after its answer; until then its own record counts, too, and so
# much longer, because clocks differ.
_LONGER: Final = timedelta(minutes=10)
# A StorageElement and a path there.
Name = tuple[str, str]


class Catalogued:
    """Knows which files are ours. Look at a file first and ask then: what is committed later lands beside it."""

    def __init__(self, database: Database, elements: Elements, protocols: Protocols) -> None:
        self._database = database
        self._elements = elements
        self._protocols = protocols

    async def refuse(self, target: Path) -> None:
        """Raise a Refusal if at this path of the machine, or below it, is a file of the catalogue."""
        names = await self.names(target)
        found = await self._found(names) if names else None
        if found is not None:
            message = f"{found} is a file of the catalogue and can only be read here; to delete it: khomas rm."
            raise Refusal(403, "CATALOGUED", message)

    async def names(self, target: Path) -> Sequence[Name]:
        """Return what a path of the machine is called; raise a Refusal for one that belongs to the service."""
        return await asyncio.to_thread(_names, await self._roots(), target)

    async def refuse_private(self, target: Path) -> None:
        """Raise a Refusal if something lies in the private folder of any StorageElement, by whatever way."""
        await asyncio.to_thread(_refuse_private, await self._roots(), target)

    async def _roots(self) -> Mapping[str, Path]:
        elements = (await self._elements.all()).values()
        return {one.id: self._protocols.local(one, "") for one in elements if self._protocols.is_local(one)}

    async def _found(self, names: Sequence[Name]) -> str | None:
        async with self._database.read() as connection:
            recent = await known_until(connection) - _LONGER
            commits = select(upload_commit.c.placements).where(
                or_(upload_commit.c.answer.is_(None), upload_commit.c.create_time > recent)
            )
            for query in _queries(names, recent):
                found: str | None = (await connection.execute(query)).scalar()
                if found is not None:
                    return found
            placed = [(one[2], one[3]) for some in await connection.scalars(commits) for one in some]
        return next((path for element, path in placed if _is_among(element, path, names)), None)


def _queries(names: Sequence[Name], recent: datetime) -> Sequence[Select[str]]:
    moving = or_(transfer.c.state == transfer_pb2.Transfer.STATE_RUNNING, transfer.c.end_time > recent)
    coming = [and_(transfer.c.destination == element, _at(transfer.c.path, path)) for element, path in names]
    known = [and_(replica.c.storage_element == element, _at(replica.c.path, path)) for element, path in names]
    return (
        select(replica.c.path).where(or_(*known)).limit(1),
        select(transfer.c.path).where(moving, or_(*coming)).limit(1),
    )


def _at(column: ColumnElement[str], path: str) -> ColumnElement[bool]:
    # "0" is the character after the slash.
    return or_(column == path, and_(column > f"{path}/", column < f"{path}0"))


def _is_among(element: str, path: str, names: Sequence[Name]) -> bool:
    return any(element == one and (path == above or path.startswith(f"{above}/")) for one, above in names)


def _names(roots: Mapping[str, Path], target: Path) -> list[Name]:
    """Return what a place is called; roots may lie in one another, and then it has a name on each of them."""
    real = target.parent.resolve() / target.name
    names: list[Name] = []
    for element, given in roots.items():
        root = given.resolve()
        if root.is_relative_to(real):
            raise Refusal(403, "STORAGE_ELEMENT", f"The root of the StorageElement {element} is there.")
        if real.is_relative_to(root):
            path = str(real.relative_to(root))
            if path.partition("/")[0] == PRIVATE:
                raise Refusal(403, "PRIVATE", f"{PRIVATE} belongs to the service.")
            names.append((element, path))
    return names


def _refuse_private(roots: Mapping[str, Path], target: Path) -> None:
    real = target.resolve()
    if any(real.is_relative_to(root.resolve() / PRIVATE) for root in roots.values()):
        raise Refusal(403, "PRIVATE", f"{PRIVATE} belongs to the service.")
