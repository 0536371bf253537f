"""What the catalogue has under the names of a commit, and ids for what it will have."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Integer, String, bindparam, func, literal, null, select, union_all
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.catalog.tables import NOT_DELETED, directory, file
from khomas.kit.database import Prepared, values_param


@dataclass(frozen=True, slots=True)
class KnownFile:
    """A file that was there before; `content` is its size and checksum."""

    id: int
    uid: str
    content: tuple[int, str]
    origin: str
    state: int


@dataclass(frozen=True, slots=True)
class Known:
    """What is there by name, and unused ids in ascending order."""

    files: dict[str, KnownFile]
    directories: dict[str, int]
    file_ids: Iterator[int]
    directory_ids: Iterator[int]


_FILE, _DIRECTORY, _FILE_IDS, _DIRECTORY_IDS = range(4)
_INTEGERS = BigInteger().with_variant(ARRAY(BigInteger), "postgresql")


def _query(file_ids: Any, directory_ids: Any) -> Prepared:
    columns = file.c
    nothing = [null().cast(type_) for type_ in (BigInteger(), String(), String(), Integer())]
    files = select(
        *(literal(_FILE, Integer), columns.name, columns.id, columns.uid, columns.size_bytes, columns.adler32),
        *(columns.origin, columns.state, null().cast(_INTEGERS)),
    ).where(values_param(columns.name, "names"), NOT_DELETED)
    directories = select(
        *(literal(_DIRECTORY, Integer), directory.c.path, directory.c.id, null().cast(String)),
        *(*nothing, null().cast(_INTEGERS)),
    ).where(values_param(directory.c.path, "directories"))
    ids = [
        select(
            *(literal(kind, Integer), null().cast(String), null().cast(BigInteger), null().cast(String)),
            *(*nothing, found),
        )
        for kind, found in ((_FILE_IDS, file_ids), (_DIRECTORY_IDS, directory_ids))
    ]
    return Prepared(union_all(files, directories, *ids))


def _drawn(sequence: str, count: str) -> Any:
    numbers = func.generate_series(literal(1, Integer), bindparam(count, type_=Integer)).alias()
    return select(func.array_agg(func.nextval(sequence), type_=_INTEGERS)).select_from(numbers).scalar_subquery()


# SQLite has one writer, so the ids after the last one are nobody else's.
_QUERY = {
    "sqlite": _query(select(func.max(file.c.id)).scalar_subquery(), select(func.max(directory.c.id)).scalar_subquery()),
    "postgresql": _query(_drawn("file_id_seq", "file_count"), _drawn("directory_id_seq", "directory_count")),
}


async def look(connection: AsyncConnection, names: set[str], directories: set[str], file_count: int) -> Known:
    """Look up files and directories by name, and draw ids for as many files and all of the directories."""
    rows = await _QUERY[connection.dialect.name].rows(
        connection,
        names=list(names),
        directories=list(directories),
        file_count=file_count,
        directory_count=len(directories),
    )
    return Known(
        {row[1]: KnownFile(row[2], row[3], (row[4], row[5]), row[6], row[7]) for row in rows if row[0] == _FILE},
        {row[1]: row[2] for row in rows if row[0] == _DIRECTORY},
        *[_ids(row[8], count) for row, count in zip(rows[-2:], (file_count, len(directories)), strict=True)],
    )


def _ids(drawn: int | Sequence[int] | None, count: int) -> Iterator[int]:
    if isinstance(drawn, list):
        return iter(sorted(drawn))
    last = drawn or 0
    return iter(range(last + 1, last + 1 + count)) if isinstance(last, int) else iter(())
