"""Which replicas must not be deleted, and why. Every deletion of a single replica asks here first."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sqlalchemy import or_, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.catalog.v1 import file_pb2
from khomas.kit.database import in_values
from khomas.kit.errors import DomainError
from khomas.storage.elements.elements import element_ids
from khomas.storage.errors import LastReplica, NoReplica, ReplicaNeeded
from khomas.storage.rules.copies import being_deleted
from khomas.storage.rules.tables import rule_copy

# Who decides about copies and about deletions at the same moment must see each other.
_LOCK = 7261


@dataclass(frozen=True, slots=True)
class ReplicaKey:
    """One replica of one file."""

    file_uid: str
    storage_element: str


async def decide_alone(connection: AsyncConnection) -> None:
    """Let nobody else decide about copies or deletions until this transaction ends. SQLite has one writer anyway."""
    if connection.dialect.name == "postgresql":
        await connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))


async def protecting_rules(connection: AsyncConnection, keys: Collection[ReplicaKey]) -> dict[ReplicaKey, str]:
    """Return, for those of the replicas that rules want, one of the rules."""
    columns = rule_copy.c
    names = {key.storage_element for key in keys}
    query = select(columns.file_uid, columns.storage_element, columns.moving_from, columns.rule_uid).where(
        in_values(columns.file_uid, {key.file_uid for key in keys}),
        or_(in_values(columns.storage_element, names), in_values(columns.moving_from, names)),
    )
    found: dict[ReplicaKey, str] = {}
    for row in (await connection.execute(query)).all():
        for name in (row.storage_element, row.moving_from):
            found[ReplicaKey(row.file_uid, name)] = row.rule_uid
    return {key: found[key] for key in keys if key in found}


async def objections(
    connection: AsyncConnection, keys: Collection[ReplicaKey], files: Mapping[str, file_pb2.File]
) -> dict[ReplicaKey, DomainError]:
    """Return, for those of the replicas that must stay, why: a rule wants it, or no other good one is known.

    `files`, by uid, are as the catalogue has just told them. Replicas that are being deleted count as gone, and so do
    the others among `keys` that come before: of two last copies that are asked about at once one is kept.
    """
    elements = await element_ids(connection)
    wanted = await protecting_rules(connection, keys)
    going = await being_deleted(connection, {key.file_uid for key in keys})
    found: dict[ReplicaKey, DomainError] = {}
    for key in keys:
        file = files.get(key.file_uid)
        refusal = _objection(key, file, wanted.get(key), elements, going)
        if refusal is not None:
            found[key] = refusal
        else:
            going.add((key.file_uid, key.storage_element))
    return found


def good_replicas(file: file_pb2.File, elements: Collection[str], going: Collection[tuple[str, str]] = ()) -> set[str]:
    """Return where readable replicas of a file lie that nobody is deleting.

    The catalogue takes any name for a StorageElement: nobody reads a replica on one that is not among `elements`.
    """
    available = {
        replica.storage_element for replica in file.replicas if replica.state == file_pb2.Replica.STATE_AVAILABLE
    }
    return {name for name in available if name in elements and (file.uid, name) not in going}


def _objection(
    key: ReplicaKey,
    file: file_pb2.File | None,
    rule: str | None,
    elements: Collection[str],
    going: Collection[tuple[str, str]],
) -> DomainError | None:
    if file is None or all(replica.storage_element != key.storage_element for replica in file.replicas):
        return NoReplica(file=file.name if file else f"files/{key.file_uid}")
    if rule is not None:
        return ReplicaNeeded(file=file.name, storage_element=key.storage_element, rule=f"replicationRules/{rule}")
    if not good_replicas(file, elements, going) - {key.storage_element}:
        return LastReplica(file=file.name, storage_element=key.storage_element)
    return None
