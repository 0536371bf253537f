"""Declared metadata keys. There are hundreds, they never change, and every call needs them: they are kept."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.catalog.v1 import catalog_service_pb2 as pb
from khomas.api.catalog.v1 import dataset_pb2
from khomas.api.common.v1.value_pb2 import Value
from khomas.catalog.errors import MetadataKeyConflict, MetadataKeyUndeclared
from khomas.catalog.names import check_distinct
from khomas.catalog.tables import metadata_key
from khomas.catalog.values import columns_of, type_name
from khomas.kit.database import Database, insert_new
from khomas.kit.errors import FieldInvalid
from khomas.kit.filtering.fields import nearest
from khomas.kit.idempotency import Once
from khomas.kit.paging import Ordering, list_page

PREFIX = "metadataKeys/"
# The columns of a table of values beside its owner.
VALUE = ("key_id", "whole", "number", "text")


@dataclass(frozen=True, slots=True)
class Key:
    """A declared key."""

    id: int
    name: str
    type: int
    unit: str


class Keys:
    """Knows the declared keys and declares new ones."""

    def __init__(self, database: Database, once: Once) -> None:
        self._database = database
        self._once = once
        self._known: dict[str, Key] = {}

    async def of(self, connection: AsyncConnection, names: set[str]) -> Mapping[str, Key]:
        """Return the keys of these names, or raise MetadataKeyUndeclared for the first that is none."""
        if not names <= self._known.keys():
            await self._load(connection)
        for name in sorted(names - self._known.keys()):
            raise MetadataKeyUndeclared(key=name, nearest=nearest(name, self._known))
        return self._known

    async def all(self, connection: AsyncConnection) -> Mapping[str, Key]:
        """Return all keys, also those that another process has just declared."""
        await self._load(connection)
        return self._known

    async def rows(
        self, connection: AsyncConnection, values: Sequence[tuple[int, Mapping[str, Value]]]
    ) -> list[tuple[Any, ...]]:
        """Return rows: an owner's id and what VALUE names. Raises for undeclared keys and wrong types."""
        known = await self.of(connection, {key for _, pairs in values for key in pairs})
        return [
            (id_, known[key].id, *columns_of(key, known[key].type, value))
            for id_, pairs in values
            for key, value in pairs.items()
        ]

    async def create(self, request: pb.BatchCreateMetadataKeysRequest) -> pb.BatchCreateMetadataKeysResponse:
        """Declare keys, all or nothing."""
        return await self._once(
            request, pb.BatchCreateMetadataKeysResponse, lambda connection: self._declare(connection, request)
        )

    async def _declare(
        self, connection: AsyncConnection, request: pb.BatchCreateMetadataKeysRequest
    ) -> pb.BatchCreateMetadataKeysResponse:
        check_distinct(key.name for key in request.metadata_keys)
        await self.declare(connection, request.metadata_keys)
        names = [key.name.removeprefix(PREFIX) for key in request.metadata_keys]
        rows = (await connection.execute(select(metadata_key).where(metadata_key.c.name.in_(names)))).all()
        by_name = {row.name: _proto(row) for row in rows}
        return pb.BatchCreateMetadataKeysResponse(metadata_keys=[by_name[name] for name in names])

    async def declare(self, connection: AsyncConnection, keys: Sequence[dataset_pb2.MetadataKey]) -> None:
        """Declare keys in a transaction; a key that is declared alike is no error."""
        now = datetime.now(UTC)
        wanted = {key.name.removeprefix(PREFIX): key for key in keys}
        rows = [
            {"name": name, "type": key.type, "unit": key.unit, "description": key.description, "create_time": now}
            for name, key in wanted.items()
        ]
        await insert_new(connection, metadata_key, rows, metadata_key.c.id)
        query = select(metadata_key).where(metadata_key.c.name.in_(wanted))
        for row in await connection.execute(query):
            if (row.type, row.unit) != (wanted[row.name].type, wanted[row.name].unit):
                raise MetadataKeyConflict(key=row.name, type=type_name(row.type), unit=row.unit)
        check_groups((await connection.execute(select(metadata_key.c.name))).scalars().all())

    async def page(self, request: pb.ListMetadataKeysRequest) -> pb.ListMetadataKeysResponse:
        """List the keys by name."""
        ordering = Ordering({"name": metadata_key.c.name}, metadata_key.c.id, "name")
        async with self._database.read() as connection:
            page = await list_page(connection, select(metadata_key), request, ordering, default_size=1000)
        return pb.ListMetadataKeysResponse(
            metadata_keys=[_proto(row) for row in page.rows], next_page_token=page.next_page_token
        )

    async def _load(self, connection: AsyncConnection) -> None:
        columns = metadata_key.c
        rows = await connection.execute(select(columns.id, columns.name, columns.type, columns.unit))
        self._known = {row.name: Key(*row) for row in rows}


def check_groups(names: Collection[str]) -> None:
    """Refuse "fits" beside "fits.object": in a filter `metadata.fits` would be a value and a group of values."""
    groups = {name.partition(".")[0]: name for name in names if "." in name}
    if both := sorted(groups.keys() & set(names)):
        problem = f"cannot declare {both[0]} and {groups[both[0]]}: a key is a value or a group of values"
        raise FieldInvalid.of("metadata_keys", problem)


def _proto(row: Any) -> dataset_pb2.MetadataKey:
    return dataset_pb2.MetadataKey(
        name=PREFIX + row.name,
        type=dataset_pb2.MetadataKey.Type.ValueType(row.type),
        unit=row.unit,
        description=row.description,
        create_time=row.create_time,
    )
