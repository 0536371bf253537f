"""Files and folders of a local disk as the tree changes them. All of it blocks: for worker threads.

Nothing is overwritten or removed but what was looked at: a stamp tells whether it is still the same.
"""

import errno
import os
import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from khomas.kit.ids import new_uid
from khomas.storage.door.refusal import Refusal, no_folder, taken
from khomas.storage.landing import INCOMING
from khomas.storage.protocols.posix import flush_folder

# What one request may copy, move or delete with a folder.
LIMIT: Final = 10_000


@dataclass(frozen=True, slots=True)
class Seen:
    """Something that was there."""

    path: Path
    folder: bool
    # A file or folder, and not a link, pipe or device.
    plain: bool
    # inode, nanosecond of its last change, size
    stamp: tuple[int, int, int]


def look(path: Path) -> Seen | None:
    """Return what is there, not following a link."""
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    folder = stat.S_ISDIR(found.st_mode)
    plain = folder or stat.S_ISREG(found.st_mode)
    return Seen(path, folder, plain, (found.st_ino, found.st_mtime_ns, found.st_size))


def tree(top: Seen) -> list[Seen]:
    """Return it and all that is below, folders before what they hold."""
    found = [top]
    for one in found:
        if one.folder:
            found.extend(filter(None, (look(Path(entry)) for entry in os.scandir(one.path))))
        if len(found) > LIMIT:
            raise Refusal(403, "TOO_MANY", f"The folder holds more than {LIMIT} entries; do it in parts.")
    return found


def hidden(root: Path) -> Path:
    """Return a free name where nobody looks for files."""
    folder = root / INCOMING
    folder.mkdir(parents=True, exist_ok=True)
    return folder / new_uid()


def publish(source: Path, target: Path, over: Seen | None, *, flush: bool) -> None:
    """Give a file its name: over what was seen there, or where nothing is."""
    if over is None:
        _name(source, target)
        source.unlink()
    else:
        _must_be_straight(target)
        _must_be(over)
        source.replace(target)
    if flush:
        flush_folder(target.parent)


def make_folder(path: Path) -> None:
    """Make one folder."""
    _must_be_straight(path)
    try:
        path.mkdir()
    except FileExistsError:
        raise Refusal(405, "EXISTS", f"There is a {path.name} already.") from None
    except (FileNotFoundError, NotADirectoryError):
        raise no_folder(path.name) from None


def remove(found: Sequence[Seen]) -> None:
    """Remove what was seen, and only that."""
    for one in reversed(found):
        _must_be_straight(one.path)
        if not one.folder:
            _must_be(one)
            one.path.unlink()
            continue
        try:
            one.path.rmdir()
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            raise Refusal(409, "NOT_EMPTY", f"{one.path.name} holds something.") from None


def copy(found: Sequence[Seen], target: Path, root: Path, *, flush: bool) -> None:
    """Copy what was seen; every file appears when all of it is there."""
    for one, place in _places(found, target):
        if one.folder:
            make_folder(place)
            continue
        part = hidden(root)
        try:
            shutil.copyfile(one.path, part, follow_symlinks=False)
            publish(part, place, None, flush=flush)
        finally:
            part.unlink(missing_ok=True)


def copy_over(one: Seen, target: Path, over: Seen, root: Path, *, flush: bool) -> None:
    """Copy a file over another one, which is there until then."""
    part = hidden(root)
    try:
        shutil.copyfile(_plain(one).path, part, follow_symlinks=False)
        publish(part, target, over, flush=flush)
    finally:
        part.unlink(missing_ok=True)


def move(found: Sequence[Seen], target: Path, *, flush: bool) -> None:
    """Give other names to what was seen; the old ones go when all have new ones."""
    for one, place in _places(found, target):
        if one.folder:
            make_folder(place)
        else:
            _must_be_straight(one.path)
            _must_be(one)
            _name(one.path, place)
            if flush:
                flush_folder(place.parent)
    remove(found)


def _name(source: Path, target: Path) -> None:
    """Give a file one more name: that, unlike a rename, overwrites nothing."""
    _must_be_straight(target)
    try:
        os.link(source, target)
    except FileExistsError:
        raise taken(target.name) from None
    except (FileNotFoundError, NotADirectoryError):
        raise no_folder(target.name) from None
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        message = "This folder is on another disk than the root; make it a StorageElement of its own."
        raise Refusal(409, "ANOTHER_DISK", message) from None


def _places(found: Sequence[Seen], target: Path) -> list[tuple[Seen, Path]]:
    top = found[0].path
    return [(one, target / _plain(one).path.relative_to(top)) for one in found]


def _plain(one: Seen) -> Seen:
    if not one.plain:
        raise Refusal(403, "NO_FILE", f"{one.path.name} is a link, a pipe or a device.")
    return one


def _must_be(seen: Seen) -> None:
    if look(seen.path) != seen:
        raise Refusal(409, "CHANGED", f"{seen.path.name} was changed meanwhile; look again.")


def _must_be_straight(path: Path) -> None:
    """Refuse a way over links: what is written there has another name, and other rules. The root is resolved."""
    if path.parent.resolve() != path.parent:
        raise Refusal(403, "LINK", f"The way to {path.name} leads over a link.")
