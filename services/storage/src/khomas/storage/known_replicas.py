"""What the catalogue has where, kept by its events: for space accounting, and to touch nothing that is in use.

Others look at it at any moment, so it is never emptied: a listing notes files anew, and what no listing or event has
noted since it began goes at its end. Who writes here decides alone (`decide_alone`): a row must not get the number of
an older listing after a newer one has begun.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.catalog.v1 import file_pb2
from khomas.api.storage.v1 import transfer_pb2
from khomas.kit.database import in_values, insert_many
from khomas.storage.tables import followed, replica, space, transfer, upload_commit

_ACTIVE = (transfer_pb2.Transfer.STATE_WAITING, transfer_pb2.Transfer.STATE_RUNNING)
_NEVER = datetime.fromtimestamp(0, UTC)


async def note(connection: AsyncConnection, files: Mapping[str, file_pb2.File]) -> None:
    """Take over the replicas of files, by uid, as they are now."""
    of_files = in_values(replica.c.file_uid, list(files))
    before = (await connection.execute(select(replica).where(of_files))).all()
    listing = (await connection.execute(select(followed.c.listing))).scalar_one()
    rows = [_row(file, one, listing) for file in files.values() for one in _present(file)]
    if before:
        await connection.execute(delete(replica).where(of_files))
    await insert_many(connection, replica, rows)
    changes: dict[str, list[int]] = {}
    for row in before:
        _count(changes, row.storage_element, -row.size_bytes, -1)
    for new in rows:
        _count(changes, new["storage_element"], new["size_bytes"], 1)
    await _add(connection, changes)


async def begin_listing(connection: AsyncConnection) -> int:
    """Begin to list the catalogue anew; return the number of the listing."""
    begun = update(followed).values(listing=followed.c.listing + 1).returning(followed.c.listing)
    return int((await connection.execute(begun)).scalar_one())


async def noted_since(connection: AsyncConnection, file_uids: Collection[str], listing: int) -> set[str]:
    """Return the files that were noted after a listing began: what it says of them may be older."""
    noted = select(replica.c.file_uid).where(in_values(replica.c.file_uid, file_uids), replica.c.listing >= listing)
    return set((await connection.scalars(noted)).all())


async def end_listing(connection: AsyncConnection, listing: int, begin_time: datetime) -> None:
    """Forget what nobody has noted since the listing began, and count what is left."""
    await connection.execute(delete(replica).where(replica.c.listing < listing))
    await connection.execute(delete(space))
    counted = (func.coalesce(func.sum(replica.c.size_bytes), 0), func.count())
    left = select(replica.c.storage_element, *counted).group_by(replica.c.storage_element)
    await connection.execute(insert(space).from_select(["storage_element", "used_bytes", "file_count"], left))
    await know_until(connection, begin_time)


async def know_until(connection: AsyncConnection, moment: datetime) -> None:
    """Note that everything from before a moment is known."""
    await connection.execute(update(followed).values(known_time=moment))


async def known_until(connection: AsyncConnection) -> datetime:
    """Return from when on there may be files that are not known here."""
    return (await connection.execute(select(followed.c.known_time))).scalar_one() or _NEVER


async def coming(connection: AsyncConnection, element: str, paths: Collection[str]) -> set[str]:
    """Return those paths that a transfer or a commit is about to announce."""
    moving = select(transfer.c.path).where(
        in_values(transfer.c.path, paths), transfer.c.destination == element, transfer.c.state.in_(_ACTIVE)
    )
    commits = select(upload_commit.c.placements).where(upload_commit.c.answer.is_(None))
    found = set((await connection.scalars(moving)).all())
    for placements in (await connection.scalars(commits)).all():
        found |= {path for _, _, target, path, *_ in placements if target == element}
    return found


def _present(file: file_pb2.File) -> Sequence[file_pb2.Replica]:
    return () if file.state == file_pb2.File.STATE_DELETED else file.replicas


def _row(file: file_pb2.File, one: file_pb2.Replica, listing: int) -> dict[str, Any]:
    return {
        "file_uid": file.uid,
        "storage_element": one.storage_element,
        "path": one.path,
        "size_bytes": file.size_bytes,
        "state": one.state or file_pb2.Replica.STATE_AVAILABLE,
        # What was just committed says nothing: it was verified a moment ago.
        "verify_time": one.verify_time.ToDatetime(UTC) if one.HasField("verify_time") else datetime.now(UTC),
        "listing": listing,
    }


def _count(changes: dict[str, list[int]], element: str, size_bytes: int, files: int) -> None:
    change = changes.setdefault(element, [0, 0])
    change[0] += size_bytes
    change[1] += files


async def _add(connection: AsyncConnection, changes: Mapping[str, Sequence[int]]) -> None:
    rows = [
        {"storage_element": element, "used_bytes": size_bytes, "file_count": files}
        for element, (size_bytes, files) in sorted(changes.items())
        if size_bytes or files
    ]
    if not rows:
        return
    insert = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(space)
    added = {name: space.c[name] + insert.excluded[name] for name in ("used_bytes", "file_count")}
    await connection.execute(insert.on_conflict_do_update(index_elements=["storage_element"], set_=added), rows)
