"""Checksums computed while bytes pass."""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from zlib_ng import zlib_ng

# One reader thread with buffers of this size is 7 times faster than small asynchronous reads.
BLOCK: Final = 4 * 1024 * 1024
# SHA-256 needs a millisecond for so much, Adler-32 a tenth of that.
_LARGE: Final = 2 * 1024 * 1024


class Algorithm(StrEnum):
    """Checksums that we can compute, by the names of RFC 3230 in lower case."""

    ADLER32 = "adler32"
    CRC32 = "crc32"
    MD5 = "md5"
    SHA256 = "sha-256"


class Hash(Protocol):
    """A checksum in the making."""

    def update(self, data: memoryview, /) -> None:
        """Take the next bytes."""

    def hexdigest(self) -> str:
        """Return it in lower-case hexadecimal digits."""


class _Rolling:
    """A checksum of 32 bits with the interface of hashlib."""

    __slots__ = ("_step", "_value")

    def __init__(self, step: Callable[[memoryview, int], int], start: int) -> None:
        self._step = step
        self._value = start

    def update(self, data: memoryview, /) -> None:
        self._value = self._step(data, self._value)

    def hexdigest(self) -> str:
        return f"{self._value:08x}"


def new_hash(algorithm: Algorithm) -> Hash:
    """Begin a checksum. All of them release the interpreter's lock."""
    match algorithm:
        case Algorithm.ADLER32:
            return _Rolling(zlib_ng.adler32, 1)
        case Algorithm.CRC32:
            return _Rolling(zlib_ng.crc32, 0)
        case Algorithm.MD5:
            return hashlib.md5(usedforsecurity=False)
        case Algorithm.SHA256:
            return hashlib.sha256()


async def take(one: Hash, block: memoryview) -> None:
    """Have a checksum take the next bytes; in a thread where that takes longer than the way there."""
    if isinstance(one, _Rolling) or len(block) < _LARGE:
        one.update(block)
    else:
        await asyncio.to_thread(one.update, block)


@dataclass(frozen=True, slots=True)
class Sums:
    """Size and checksums of the same bytes; an empty text is a checksum that was not computed."""

    size_bytes: int
    adler32: str
    sha256: str = ""
    content_digest: str = ""


class Summing:
    """Takes bytes in order and knows their checksums. Both algorithms release the interpreter's lock."""

    __slots__ = ("_adler32", "_sha256", "size_bytes")

    def __init__(self, *, sha256: bool) -> None:
        self.size_bytes = 0
        self._adler32 = 1
        self._sha256 = hashlib.sha256() if sha256 else None

    def add(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes."""
        self.size_bytes += len(data)
        self._adler32 = zlib_ng.adler32(data, self._adler32)
        if self._sha256 is not None:
            self._sha256.update(data)

    @property
    def adler32(self) -> str:
        """Return eight hexadecimal digits."""
        return f"{self._adler32:08x}"

    @property
    def sums(self) -> Sums:
        """Return what is known of the bytes so far."""
        return Sums(self.size_bytes, self.adler32, self._sha256.hexdigest() if self._sha256 else "")


def summed(readinto: Callable[[memoryview], int], *, sha256: bool) -> Sums:
    """Read to the end and return the checksums. Blocks: for worker threads."""
    summing, buffer = Summing(sha256=sha256), memoryview(bytearray(BLOCK))
    while count := readinto(buffer):
        summing.add(buffer[:count])
    return summing.sums
