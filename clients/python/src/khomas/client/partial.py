"""What has arrived of a file: hidden beside its target, gone on with later, shown only when it is whole and right."""

import errno
import fcntl
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from khomas.client.bytes_moving import EMPTY, Damaged, pump, shown, write_all
from khomas.client.errors import FAILED, KhomasError

PART = ".khomas-part"
_NOTE = ".khomas-part.json"
_LONGEST_NAME = 255
# Smaller ones are fetched again rather than noted.
_WORTH_A_NOTE = 1024 * 1024
_FULL = (errno.ENOSPC, errno.EDQUOT)


class LocalFault(KhomasError):
    """This machine cannot keep what arrives."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file as the catalogue knows it, and where it is to lie here."""

    target: Path
    name: str
    uid: str
    size: int
    # Empty if the catalogue has none.
    adler32: str

    @property
    def part(self) -> Path:
        """Return where it is kept until it is whole."""
        return self._beside(PART)

    @property
    def note(self) -> Path:
        """Return where is written what the part is a part of."""
        return self._beside(_NOTE)

    def _beside(self, end: str) -> Path:
        hidden = f".{self.target.name}{end}"
        if len(os.fsencode(hidden)) > _LONGEST_NAME:
            hidden = f".{hashlib.sha256(os.fsencode(self.target.name)).hexdigest()}{end}"
        return self.target.with_name(hidden)


class Part:
    """An open part; nobody else writes to it."""

    def __init__(self, wanted: Wanted, file: BinaryIO) -> None:
        self.wanted = wanted
        self._file = file
        self._checksum = EMPTY
        self.have = 0
        self._etags: dict[str, str] = {}
        self._published = False
        self._take_up()

    @property
    def whole(self) -> bool:
        """Tell whether nothing is missing."""
        return self.have == self.wanted.size

    def write(self, block: memoryview) -> None:
        """Add bytes; raises Damaged when there are more than expected."""
        if self.have + len(block) > self.wanted.size:
            raise Damaged(self.wanted.name, f"{self.wanted.size} bytes", "more")
        with _on_this_disk(self.wanted):
            write_all(self._file, block)
        self._checksum = zlib.adler32(block, self._checksum)
        self.have += len(block)

    def begin_anew(self) -> None:
        """Forget what has arrived."""
        with _on_this_disk(self.wanted):
            self._file.truncate(0)
            self._file.seek(0)
        self._checksum, self.have, self._etags = EMPTY, 0, {}
        self._write_note()

    def etag(self, address: str) -> str:
        """Return what an earlier answer from there called its version, "" if there was none."""
        return self._etags.get(address, "")

    def came_from(self, address: str, etag: str) -> None:
        """Note the version that bytes come from; a weak one says nothing about bytes."""
        if etag.startswith('"') and self._etags.get(address) != etag:
            self._etags[address] = etag
            self._write_note()

    def check(self) -> None:
        """Raise Damaged unless it has the expected checksum."""
        if self.wanted.adler32 not in ("", shown(self._checksum)):
            raise Damaged(self.wanted.name, self.wanted.adler32, f"adler32 {shown(self._checksum)}")

    def publish(self) -> None:
        """Show the file under its name."""
        self.wanted.part.replace(self.wanted.target)
        self.wanted.note.unlink(missing_ok=True)
        self._published = True

    def leave(self) -> None:
        """Keep what is worth going on with."""
        if not self._published and (not self.have or self.wanted.size <= _WORTH_A_NOTE):
            self.wanted.part.unlink(missing_ok=True)
            self.wanted.note.unlink(missing_ok=True)

    def _take_up(self) -> None:
        size = os.fstat(self._file.fileno()).st_size
        note = self._read_note()
        if not size or size > self.wanted.size or note.get("of") != self._of():
            self.begin_anew()
            return
        self._etags = note.get("etags", {})
        self._checksum = pump(self._file, len, lambda _: None)
        self.have = size

    def _of(self) -> list[object]:
        return [self.wanted.uid, self.wanted.size, self.wanted.adler32]

    def _read_note(self) -> dict[str, Any]:
        try:
            note = json.loads(self.wanted.note.read_text())
        except (OSError, ValueError):
            return {}
        return note if isinstance(note, dict) else {}

    def _write_note(self) -> None:
        if self.wanted.size > _WORTH_A_NOTE:
            with _on_this_disk(self.wanted):
                self.wanted.note.write_text(json.dumps({"of": self._of(), "etags": self._etags}))


@contextmanager
def opened(wanted: Wanted) -> Iterator[Part]:
    """Go on with the part of a file, or begin one; faults of this machine's disk are LocalFaults."""
    with _on_this_disk(wanted):
        wanted.target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(wanted.part) as file:
            part = Part(wanted, file)
            try:
                yield part
            finally:
                part.leave()


@contextmanager
def _on_this_disk(wanted: Wanted) -> Iterator[None]:
    """Say what to do about a fault of the disk, and do not take it for one of the network."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            message = f"{wanted.target}: the disk is full. Make room and repeat the command: it goes on where it was"
            raise LocalFault(message, "NO_SPACE", exit_code=FAILED) from error
        raise LocalFault(f"{wanted.target}: {error.strerror or error}", "LOCAL_FILE", exit_code=FAILED) from error


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        with cast("BinaryIO", os.fdopen(descriptor, "r+b", buffering=0)) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                message = f"{path} is being written by another process; wait for it, or give another place"
                raise LocalFault(message, "LOCAL_FILE", exit_code=FAILED) from None
            # Who had the lock before may have given it its final name.
            if _is_at(file, path):
                yield file
                return


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
