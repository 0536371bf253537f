"""Bytes between local files: checked on the way, never half a file."""

import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from khomas.client.errors import KhomasError

# Large reads keep both the disk and the checksum busy; 4 MiB measured best.
BLOCK = 4 * 1024 * 1024
# Of no bytes at all.
EMPTY = 1
Progress = Callable[[int], None]


class Damaged(KhomasError):
    """What arrived is not what was sent."""

    def __init__(self, name: str, expected: str, received: str) -> None:
        super().__init__(f"{name} arrived with {received} instead of {expected}", "CHECKSUM_MISMATCH")


def nothing(length: int) -> None:
    """Ignore progress."""


def copy(source: Path, target: Path, progress: Progress) -> tuple[int, str]:
    """Copy a file on this machine and return its size and adler32; the target is there once all bytes are."""
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with source.open("rb", buffering=0) as reading, part.open("xb", buffering=0) as writing:
            checksum = pump(reading, lambda block: write_all(writing, block), progress)
            size = writing.tell()
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return size, shown(checksum)


def pump(reading: BinaryIO, write: Callable[[memoryview], object], progress: Progress, checksum: int = EMPTY) -> int:
    """Pass on all that can be read, and return the checksum of it after what had that of before."""
    buffer = bytearray(BLOCK)
    view = memoryview(buffer)
    while length := reading.readinto(buffer):  # type: ignore[attr-defined]  # raw files have it
        checksum = zlib.adler32(view[:length], checksum)
        write(view[:length])
        progress(length)
    return checksum


def write_all(writing: BinaryIO, block: memoryview) -> None:
    """Write a block to an unbuffered file, which may take less at a time."""
    written = 0
    while written < len(block):
        written += writing.write(block[written:])


def adler32(path: Path, progress: Progress = nothing) -> str:
    """Return the checksum of a local file."""
    with path.open("rb", buffering=0) as reading:
        return shown(pump(reading, len, progress))


def shown(checksum: int) -> str:
    """Return a checksum as it is written."""
    return f"{checksum:08x}"
