"""Rules about LFNs."""

from collections.abc import Iterable

from khomas.catalog.errors import DuplicateName
from khomas.kit.errors import FieldInvalid

ROOT = "/"


def check_name(name: str, field: str = "name") -> None:
    """Raise FieldInvalid for what is no LFN: absolute, without empty, "." or ".." segments."""
    segments = name.split("/")
    if len(segments) < 2 or segments[0] or any(segment in ("", ".", "..") for segment in segments[1:]):
        raise FieldInvalid.of(field, f"{name!r} is no LFN: it starts with / and has no empty, . or .. segment")


def check_distinct(names: Iterable[str]) -> None:
    """Raise DuplicateName for the first name that comes twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DuplicateName(name=name)
        seen.add(name)


def directory_of(name: str) -> str:
    """Return the directory that a file or directory lies in; that of "/" is ""."""
    if name == ROOT:
        return ""
    return name[: name.rindex("/")] or ROOT


def with_ancestors(directories: Iterable[str]) -> set[str]:
    """Return the directories and all that they lie in."""
    found: set[str] = set()
    for directory in directories:
        path = directory
        while path and path not in found:
            found.add(path)
            path = directory_of(path)
    return found


def default_path(name: str) -> str:
    """Return where a replica lies unless told: the LFN without its first slash."""
    return name[1:]
