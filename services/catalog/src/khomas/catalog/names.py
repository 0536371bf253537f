"""Rules about LFNs."""

import re
from collections.abc import Iterable

from khomas.catalog.errors import DuplicateName
from khomas.kit.errors import FieldInvalid

ROOT = "/"
_DATASET = re.compile(r"datasets/[a-zA-Z0-9][a-zA-Z0-9._-]*(/[a-zA-Z0-9][a-zA-Z0-9._-]*)*")
_MAX_DATASET = 256
_KEY = re.compile(r"[a-z][a-z0-9_]{0,62}(\.[a-z][a-z0-9_]{0,62})?")


def check_name(name: str, field: str = "name") -> None:
    """Raise FieldInvalid for what is no LFN: absolute, without empty, "." or ".." segments."""
    segments = name.split("/")
    if len(segments) < 2 or segments[0] or any(segment in ("", ".", "..") for segment in segments[1:]):
        raise FieldInvalid.of(field, f"{name!r} is no LFN: it starts with / and has no empty, . or .. segment")


def check_dataset(name: str, field: str) -> None:
    """Raise FieldInvalid for what the contract does not allow as the name of a dataset."""
    if len(name) > _MAX_DATASET or not _DATASET.fullmatch(name):
        raise FieldInvalid.of(field, f"{name!r} is no dataset; it is written datasets/… with letters, digits and ._-/")


def check_key(name: str, field: str) -> None:
    """Raise FieldInvalid for what the contract does not allow as a metadata key."""
    if not _KEY.fullmatch(name):
        raise FieldInvalid.of(field, f"{name!r} is no metadata key; it is written like zenith or fits.object")


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
