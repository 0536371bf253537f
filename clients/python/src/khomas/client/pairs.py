"""Local files and the names that they have in the catalogue."""

import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from khomas.client.errors import UsageError
from khomas.client.partial import PART

# Control characters, and percent signs that look like a broken or dangerous escape: what no path in a token may have.
_ODD = re.compile(r"[\x00-\x1f\x7f-\x9f]|%(?![0-9A-Fa-f]{2})|%[01][0-9A-Fa-f]|%2[EeFf]|%7[Ff]")


@dataclass(frozen=True, slots=True)
class Pair:
    """A file here and its LFN."""

    path: Path
    name: str


def below(path: Path, name: str) -> list[Pair]:
    """Pair a local file, or all files below a folder, with LFNs."""
    if path.is_dir():
        return [Pair(one, _named(one, f"{name}/{relative}")) for relative, one in sorted(files_of(path))]
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    return [Pair(path, _named(path, name))]


def files_of(folder: Path) -> Iterator[tuple[str, Path]]:
    """Go through the files below a folder, with their relative names; not those that are still arriving."""
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in names:
            path = Path(place, name)
            if not _arriving(name) and path.is_file():
                yield path.relative_to(folder).as_posix(), path


def _arriving(name: str) -> bool:
    return name.startswith(".") and name.endswith((PART, f"{PART}.json"))


def _named(path: Path, name: str) -> str:
    """Refuse before any byte is sent what the services would refuse at the end."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UsageError(f"the name of {os.fsencode(path)!r} is not UTF-8; rename it") from None
    if not unicodedata.is_normalized("NFC", name):
        raise UsageError(f"{path}: names are kept in the Unicode normal form NFC; rename it")
    if (odd := _ODD.search(name)) is not None:
        raise UsageError(f"{str(path)!r}: a name in the catalogue has no {odd[0]!r}; rename it")
    return name
