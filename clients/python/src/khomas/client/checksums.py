"""Checksums of local files, remembered with size and time, so that what has not changed is not read again."""

import os
import time
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from khomas.client.parts import chunks

if TYPE_CHECKING:
    import sqlite3

_FORGET_SECONDS = 180 * 24 * 3600
# A file changed a moment ago may change again without another time.
_SETTLED_NS = 2_000_000_000
_ASKED = 500
_WAIT_SECONDS = 10.0
Stamp = tuple[int, int, int, int]
# What was read, what its stamp was before, and its checksum.
Read = tuple[Path, Stamp | None, str]


def default_place() -> Path:
    """Return where checksums are remembered."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "khomas" / "checksums.sqlite"


class KnownChecksums:
    """The memory. Where it cannot be written or read, everything is read again, and that is all."""

    def __init__(self, place: Path | None = None) -> None:
        self._place = place or default_place()

    def of(self, paths: Sequence[Path]) -> dict[Path, str]:
        """Return the checksums of files that have not changed since they were read."""
        import sqlite3

        known: dict[Path, str] = {}
        with suppress(sqlite3.Error, OSError), closing(self._open()) as database:
            for part in chunks(paths, _ASKED):
                rows = _rows(database, part)
                known |= {path: rows[path][1] for path in part if path in rows and rows[path][0] == stamp_of(path)}
        return known

    def remember(self, read: Iterable[Read]) -> None:
        """Keep what was just read."""
        import sqlite3

        now = time.time_ns()
        rows = [(_key(path), *stamp, adler32, now // 10**9) for path, stamp, adler32 in read if stamp is not None]
        with suppress(sqlite3.Error, OSError), closing(self._open()) as database, database:
            database.execute("DELETE FROM checksum WHERE seen < ?", (now // 10**9 - _FORGET_SECONDS,))
            database.executemany("INSERT OR REPLACE INTO checksum VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    def _open(self) -> "sqlite3.Connection":
        import sqlite3

        self._place.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(self._place, timeout=_WAIT_SECONDS)
        database.execute(
            "CREATE TABLE IF NOT EXISTS checksum (path BLOB PRIMARY KEY, inode INTEGER, size INTEGER,"
            " modified INTEGER, changed INTEGER, adler32 TEXT, seen INTEGER) WITHOUT ROWID"
        )
        return database


def _rows(database: "sqlite3.Connection", paths: Sequence[Path]) -> dict[Path, tuple[Stamp, str]]:
    names = {_key(path): path for path in paths}
    marks = ", ".join("?" * len(names))
    found = database.execute(f"SELECT * FROM checksum WHERE path IN ({marks})", list(names))  # noqa: S608  only marks
    return {names[row[0]]: ((row[1], row[2], row[3], row[4]), row[5]) for row in found}


def stamp_of(path: Path) -> Stamp | None:
    """Return what changes with the content of a file, None if there is no such file. Take it before reading."""
    try:
        found = path.stat()
    except OSError:
        return None
    # Inodes may use all 64 bits, SQLite has 63 of them.
    return (found.st_ino & (2**63 - 1), found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def is_settled(stamp: Stamp | None) -> bool:
    """Tell whether another change would show: one within the same tick of the clock would not."""
    return stamp is not None and max(stamp[2:]) < time.time_ns() - _SETTLED_NS


def _key(path: Path) -> bytes:
    return os.fsencode(path.absolute())
