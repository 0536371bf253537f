"""How StorageElements are looked after: defaults of the settings, and what was set for one of them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from google.protobuf.duration_pb2 import Duration
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.storage.v1 import care_pb2 as pb
from khomas.api.storage.v1 import integrity_service_pb2
from khomas.kit.database import Database, insert_many
from khomas.kit.errors import FieldInvalid
from khomas.kit.idempotency import Once
from khomas.storage.elements.elements import PREFIX, Elements, known
from khomas.storage.reconciling.tables import care
from khomas.storage.rows import mapping

_SUFFIX = "/carePolicy"


@dataclass(frozen=True, slots=True)
class Policy:
    """What is done by itself; a time of zero is never, a rate of zero no limit."""

    verify_period: timedelta
    verify_bytes_per_second: int
    reconcile_interval: timedelta
    max_lost_percent: float
    repair_automatically: bool
    deletions_per_second: float
    probe_interval: timedelta


_SPANS = ("verify_period", "reconcile_interval", "probe_interval")
_PLAIN = ("verify_bytes_per_second", "max_lost_percent", "repair_automatically", "deletions_per_second")
_FIELDS = frozenset({*_SPANS, *_PLAIN})


class Policies:
    """Reads and changes care policies."""

    def __init__(self, database: Database, once: Once, elements: Elements, defaults: Policy) -> None:
        self._database = database
        self._once = once
        self._elements = elements
        self._defaults = defaults

    async def all(self) -> dict[str, Policy]:
        """Return the policy of every StorageElement, by id."""
        async with self._database.read() as connection:
            rows = {row.storage_element: mapping(row) for row in (await connection.execute(select(care))).all()}
        return {name: self._policy(rows.get(name, {})) for name in await self._elements.all()}

    async def ensure_rows(self) -> None:
        """Give every StorageElement a row, which what is done for it is planned in."""
        elements = await self._elements.all()
        async with self._database.read() as connection:
            there = set((await connection.scalars(select(care.c.storage_element))).all())
        if missing := elements.keys() - there:
            rows = [{"storage_element": name} for name in sorted(missing)]
            async with self._database.write() as connection:
                await insert_many(connection, care, rows, skip_existing=True)

    async def get(self, name: str) -> pb.CarePolicy:
        """Read one."""
        element = await self._element(name)
        async with self._database.read() as connection:
            return await self._read(connection, element)

    async def update(self, request: integrity_service_pb2.UpdateCarePolicyRequest) -> pb.CarePolicy:
        """Change some fields of one."""
        element = await self._element(request.care_policy.name)
        if unknown := set(request.update_mask.paths) - _FIELDS:
            known_fields = ", ".join(sorted(_FIELDS))
            raise FieldInvalid.of("update_mask", f"there is no {min(unknown)}; there are {known_fields}")
        values = dict(_column(path, request.care_policy) for path in request.update_mask.paths)

        async def work(connection: AsyncConnection) -> pb.CarePolicy:
            await insert_many(connection, care, [{"storage_element": element}], skip_existing=True)
            if values:
                await connection.execute(update(care).where(care.c.storage_element == element).values(values))
            return await self._read(connection, element)

        return await self._once(request, pb.CarePolicy, work)

    async def _element(self, name: str) -> str:
        if not (name.startswith(PREFIX) and name.endswith(_SUFFIX)):
            raise FieldInvalid.of("name", f"is written {PREFIX}{{id}}{_SUFFIX}")
        return known(await self._elements.all(), name.removeprefix(PREFIX).removesuffix(_SUFFIX)).id

    async def _read(self, connection: AsyncConnection, element: str) -> pb.CarePolicy:
        row = (await connection.execute(select(care).where(care.c.storage_element == element))).one_or_none()
        policy = self._policy(mapping(row) if row is not None else {})
        message = pb.CarePolicy(name=PREFIX + element + _SUFFIX, **{name: getattr(policy, name) for name in _PLAIN})
        for name in _SPANS:
            getattr(message, name).FromTimedelta(getattr(policy, name))
        return message

    def _policy(self, row: Mapping[str, Any]) -> Policy:
        changes: dict[str, Any] = {name: row[name] for name in _PLAIN if row.get(name) is not None}
        for name in _SPANS:
            if (seconds := row.get(f"{name}_seconds")) is not None:
                changes[name] = timedelta(seconds=seconds)
        return replace(self._defaults, **changes)


def _column(field: str, message: pb.CarePolicy) -> tuple[str, Any]:
    """Return the column of a field, and its value."""
    value = getattr(message, field)
    return (f"{field}_seconds", _span(value).total_seconds()) if field in _SPANS else (field, value)


def _span(duration: Duration) -> timedelta:
    span = duration.ToTimedelta()
    if span < timedelta(0):
        raise FieldInvalid.of("care_policy", "no time is negative; zero means never")
    return span
