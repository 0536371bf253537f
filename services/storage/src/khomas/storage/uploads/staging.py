"""Files of uploads where they lie before and after the commit. All of it blocks: for worker threads."""

import errno
import hashlib
import logging
import os
import shutil
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from khomas.storage import fits
from khomas.storage.checksums import Sums, summed
from khomas.storage.paths import apart, beside
from khomas.storage.protocols.posix import PosixSource, flush_folder

log = logging.getLogger(__name__)

# Nothing can be there: a file is where a folder would be, or the file system takes no name of this length.
_NEVER_THERE = (errno.ENOTDIR, errno.ENAMETOOLONG)


class NotThere(Exception):
    """The file has not arrived, or is nothing that may be committed."""


class Changed(Exception):
    """The file was written to after its checksums were computed."""


class Taken(Exception):
    """Somebody else has taken the path meanwhile."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one uploaded file lies, and where it goes."""

    upload: str
    index: int
    storage_element: str
    path: str
    stamp: str


def stamp_of(path: Path) -> str:
    """Return what tells whether a file is still the same; raises NotThere."""
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        raise NotThere from None
    # A link could give what the service may read to somebody who may not.
    if not stat.S_ISREG(found.st_mode):
        raise NotThere
    return f"{found.st_ino}:{found.st_mtime_ns}:{found.st_size}"


def sums_of(path: Path, *, sha256: bool) -> Sums:
    """Read a file once for its checksums."""
    source = PosixSource(path)
    try:
        return summed(source.readinto, sha256=sha256)
    finally:
        source.close()


def md5_of(path: Path) -> str:
    """Return the MD5, for comparison with what an older system gave."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def with_digest(sums: Sums, path: Path, name: str) -> Sums:
    """Add the content digest if the file is FITS; one that only has the name stays without."""
    if not fits.looks_like_fits(name):
        return sums
    try:
        return replace(sums, content_digest=fits.content_digest(fits.read_hdus(path, datasums=True)))
    except fits.NotFits:
        return sums


def free_path(local: Callable[[str], Path], wanted: str, uid: str, taken: set[str]) -> str:
    """Return the path that a new file gets: the wanted one, or one beside it when that is taken."""
    for path in (wanted, beside(wanted, uid), apart(wanted, uid)):
        if path not in taken and _usable(local(path)):
            taken.add(path)
            return path
    return apart(f"{len(taken)}-{wanted.rpartition('/')[2]}", uid)


def _usable(target: Path) -> bool:
    try:
        target.lstat()
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno not in _NEVER_THERE:
            raise
        return False
    else:
        return False
    parent = target.parent
    while not os.path.lexists(parent):
        parent = parent.parent
    return parent.is_dir()


def place(source: Path, target: Path, stamp: str, *, flush: bool) -> None:
    """Give a staged file its name, without overwriting anything; done already is no fault.

    The staged name stays, so that the step can be repeated and taken back.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(source, target)
    except FileNotFoundError:
        raise NotThere from None
    except (FileExistsError, NotADirectoryError):
        if not _same(source, target):
            raise Taken from None
    if stamp_of(target) != stamp:
        target.unlink(missing_ok=True)
        raise Changed
    if flush:
        _flush(target)
        flush_folder(target.parent)


def take_back(source: Path, target: Path) -> None:
    """Undo `place`, also when it was never done."""
    if _same(source, target):
        target.unlink(missing_ok=True)


def _same(source: Path, target: Path) -> bool:
    try:
        return source.samefile(target)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno not in _NEVER_THERE:
            raise
        return False


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folders(folders: Sequence[Path]) -> None:
    """Make the staging folders of uploads; there already is no fault."""
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)


def folders_in(folder: Path) -> list[str]:
    """Return the names of all staging folders in their common folder; none if it is not there, or does not answer."""
    try:
        return [path.name for path in folder.iterdir()]
    except OSError:
        return []


def remove_folders(folders: Sequence[Path]) -> None:
    """Remove the staging folders of uploads with all that is in them; what stays is swept later."""
    for folder in folders:
        try:
            shutil.rmtree(folder)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            # NFS keeps what somebody still reads.
            log.warning("upload.left_behind", extra={"path": str(folder), "error": str(error)})
