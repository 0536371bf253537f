"""What stands in the way of copies that are wanted, read with one statement at the moment when they are noted."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import literal, select, union_all
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.kit.database import in_values
from khomas.storage.deletions.taking_back import Pair, is_doubtful, of
from khomas.storage.tables import deletion, storage_element, transfer

_DELETION, _TRANSFER = "deletion", "transfer"


@dataclass(frozen=True, slots=True)
class Standing:
    """How it stands with the destinations of wanted copies."""

    # StorageElements that are not there any more.
    gone: frozenset[str]
    # Replicas by uid of the file of which nobody can tell whether they are there.
    doubtful: frozenset[Pair]
    # Names of files with a destination that a transfer is on its way to.
    wanted: frozenset[Pair]


async def standing(
    connection: AsyncConnection, wanted: Collection[Mapping[str, Any]], active: Sequence[int]
) -> Standing:
    """Look; StorageElements that are there are kept until the transaction ends."""
    pairs = {(row["file_uid"], row["destination"]) for row in wanted}
    names = {row["destination"] for row in wanted}
    going = select(
        literal(_DELETION).label("kind"), deletion.c.file_uid.label("file"), deletion.c.storage_element.label("element")
    ).where(*of(pairs), is_doubtful)
    coming = select(literal(_TRANSFER), transfer.c.file, transfer.c.destination).where(
        in_values(transfer.c.file, {row["file"] for row in wanted}), transfer.c.state.in_(active)
    )
    moving = union_all(going, coming).subquery()
    query = (
        select(storage_element.c.id, moving.c.kind, moving.c.file)
        .select_from(storage_element.outerjoin(moving, moving.c.element == storage_element.c.id))
        .where(in_values(storage_element.c.id, names))
        .with_for_update(read=True, key_share=True, of=storage_element)
    )
    rows = (await connection.execute(query)).all()
    return Standing(
        gone=frozenset(names.difference(row.id for row in rows)),
        doubtful=frozenset((row.file, row.id) for row in rows if row.kind == _DELETION),
        wanted=frozenset((row.file, row.id) for row in rows if row.kind == _TRANSFER),
    )
