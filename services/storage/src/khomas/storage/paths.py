"""The rule for paths on StorageElements: refuse what is odd, never normalise it."""

import re

from khomas.storage.errors import PathRefused

# Where the service keeps what is not visible yet, at the root of every StorageElement.
PRIVATE = ".khomas"
# Of that, the folder with the staging folders of uploads.
STAGING = f"{PRIVATE}/uploads"
_MAX_BYTES = 2048
# No file system that we know takes more between two slashes.
_MAX_PART_BYTES = 255
# A control character, an escaped dot or slash; empty, "." and ".." segments; a slash at either end.
_ODD = re.compile(r"[\x00-\x1f\x7f-\x9f]|%2[eEfF]|^/|/$|//|(^|/)\.{1,2}(/|$)")


def checked(path: str) -> str:
    """Return a path relative to a root as it is, or raise PathRefused."""
    # A name that is no UTF-8 has surrogates, which nothing can send.
    plain = path.encode(errors="backslashreplace")
    if not path or len(plain) > _MAX_BYTES or plain.decode() != path or _ODD.search(path):
        raise PathRefused(path=plain.decode())
    return path


def for_content(path: str) -> str:
    """Return a path that may hold the bytes of a file: `checked`, and not in the private folder."""
    if checked(path).partition("/")[0] == PRIVATE:
        raise PathRefused(path=path)
    return path


def for_file(name: str) -> str:
    """Return where the bytes of an LFN lie by default: the name without its first slash."""
    return for_content(name.removeprefix("/"))


def for_new_file(name: str) -> str:
    """Return the same for a file that is not catalogued yet: every file system must be able to hold a copy of it."""
    path = for_file(name)
    for part in path.split("/"):
        if (size_bytes := len(part.encode())) > _MAX_PART_BYTES:
            raise PathRefused(
                f"The part {part} of the name has {size_bytes} bytes; make it {_MAX_PART_BYTES} or shorter.", path=path
            )
    return path


def staging(upload: str, index: int | None = None) -> str:
    """Return the staging folder of an upload, or the path of one of its files."""
    folder = f"{STAGING}/{upload}"
    return folder if index is None else f"{folder}/{index}"


def beside(path: str, uid: str) -> str:
    """Return the path to use when `path` is taken."""
    folder, slash, base = path.rpartition("/")
    mark = f"~{_random_part(uid)}"
    return f"{folder}{slash}{_cut(base, _MAX_PART_BYTES - len(mark))}{mark}"


def apart(path: str, uid: str) -> str:
    """Return the path to use when there is a file where `path` wants a folder."""
    return f"~{_random_part(uid)}/{_cut(path.rpartition('/')[2], _MAX_PART_BYTES)}"


def _cut(part: str, max_bytes: int) -> str:
    return part.encode()[:max_bytes].decode(errors="ignore")


def _random_part(uid: str) -> str:
    # A UUIDv7 begins with the time.
    return uid.replace("-", "")[-12:]
