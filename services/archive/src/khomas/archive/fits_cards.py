"""Published copies of FITS files: the same data, with checksums and with cards that say where they come from."""

import gzip
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final
from urllib.parse import quote

from khomas.archive.mapping import Header

# With NumPy it is 25 MiB, which a service pays with the first file that it opens.
if TYPE_CHECKING:
    from astropy.io import fits

_READ: Final = 2880 * 16
_ONES: Final = 0xFFFFFFFF
_NO_VALUE: Final = frozenset({"COMMENT", "HISTORY", "CONTINUE", ""})
# Punctuation between digits, upper and lower case letters, which the encoded checksum avoids.
_EXCLUDED: Final = frozenset((*range(0x3A, 0x41), *range(0x5B, 0x61)))
# What one card takes of value and comment.
_LINE: Final = 60
_PRINTABLE: Final = "".join(map(chr, range(0x20, 0x7F)))
_CHECKSUM_COMMENT: Final = "of this HDU"
_DATASUM_COMMENT: Final = "of its data"


class NotFits(Exception):
    """The file is no FITS file, or a broken one."""


@dataclass(frozen=True, slots=True)
class Hdu:
    """One HDU without its data."""

    name: str
    header: "fits.Header"
    datasum: int

    @property
    def size_bytes(self) -> int:
        """Return what header and data take in the file."""
        return len(self.header.tostring()) + int(self.header.data_size_padded)

    def read(self) -> Header:
        """Return the cards as mappings see them; of cards with the same name the first counts."""
        from astropy.io.fits.verify import VerifyError

        cards: dict[str, str | int | float | bool] = {}
        for card in self.header.cards:
            try:
                keyword, value = card.keyword, card.value
            except VerifyError:
                continue  # nothing that can be read
            if keyword not in _NO_VALUE and isinstance(value, str | int | float | bool):
                cards.setdefault(keyword, value)
        return Header(self.name, cards)


def looks_like_fits(name: str) -> bool:
    """Tell by the name whether a file should be FITS."""
    return name.lower().removesuffix(".gz").endswith((".fits", ".fit", ".fts", ".fits.fz"))


def read_hdus(path: Path) -> list[Hdu]:
    """Read all headers and sum all data; raises NotFits or OSError."""
    with _reading(path) as stream:
        return [
            Hdu(_name(header, number), header, _datasum(stream, header.data_size_padded))
            for number, header in enumerate(_headers(stream))
        ]


def content_digest(hdus: list[Hdu]) -> str:
    """Return the SHA-256 over the "NAME:datasum" lines, as storage and the job wrapper compute it."""
    lines = "".join(f"{hdu.name}:{hdu.datasum}\n" for hdu in hdus)
    return hashlib.sha256(lines.encode()).hexdigest()


def write_copy(source: Path, target: Path, cards: Mapping[str, tuple[str, str]]) -> None:
    """Write a copy with CHECKSUM and DATASUM in every HDU and with cards (value, comment) in the first.

    The same source and cards give the same bytes. Raises NotFits or OSError.
    """
    hdus = read_hdus(source)
    primary = hdus[0].header
    for keyword, (text, comment) in cards.items():
        value = quote(text, safe=_PRINTABLE)  # a card takes ASCII only
        if len(value) > _LINE:
            primary.set("LONGSTRN", "OGIP 1.0", "long values go on in CONTINUE")
        primary.set(keyword, value, comment if len(value) + len(comment) <= _LINE else "")
    with _reading(source) as before, _writing(target) as after:
        for hdu, old in zip(hdus, _headers(before), strict=True):
            after.write(_signed(hdu))
            for chunk in _chunks(before, old.data_size_padded):
                after.write(chunk)


@contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    from astropy.io.fits.verify import VerifyError

    with path.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        try:
            if not zipped:
                yield raw
                return
            with gzip.GzipFile(fileobj=raw) as stream:
                yield stream  # type: ignore[misc]  # reads alike
        except (EOFError, gzip.BadGzipFile, VerifyError, UnicodeError, ValueError) as error:
            raise NotFits(str(error)) from error


@contextmanager
def _writing(path: Path) -> Iterator[BinaryIO]:
    with path.open("wb") as raw:
        if not path.name.lower().endswith(".gz"):
            yield raw
            return
        # Neither name nor time in it: equal content gives equal bytes.
        with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=6) as stream:
            yield stream  # type: ignore[misc]  # writes alike


def _headers(stream: BinaryIO) -> "Iterator[fits.Header]":
    """Yield one header after the other; whoever takes one reads its data before the next."""
    from astropy.io import fits

    for number in count():
        start = stream.tell()
        begin = stream.read(9)
        stream.seek(start)
        if begin != (b"XTENSION=" if number else b"SIMPLE  ="):
            if number == 0:
                raise NotFits("the file does not begin with SIMPLE")
            return  # the end, or special records, which the standard leaves to nobody
        try:
            yield fits.Header.fromfile(stream)
        except (OSError, EOFError) as error:
            raise NotFits(f"a header cannot be read: {error}") from error


def _name(header: "fits.Header", number: int) -> str:
    name = str(header.get("EXTNAME", "")).strip().upper()
    return name or ("PRIMARY" if number == 0 else str(number))


def _chunks(stream: BinaryIO, size: int) -> Iterator[bytes]:
    while size:
        chunk = stream.read(min(size, _READ))
        if not chunk:
            raise NotFits(f"the file ends {size} bytes before the end of its data")
        size -= len(chunk)
        yield chunk


def _datasum(stream: BinaryIO, size: int) -> int:
    return _folded(sum(int.from_bytes(chunk) for chunk in _chunks(stream, size)))


def _folded(total: int) -> int:
    """Reduce a sum of 32-bit words to ones' complement; zero comes of zeros only."""
    return total % _ONES or (_ONES if total else 0)


def _signed(hdu: Hdu) -> bytes:
    """Return the header with its checksums."""
    header = hdu.header
    header.set("DATASUM", str(hdu.datasum), _DATASUM_COMMENT)
    header.set("CHECKSUM", "0" * 16, _CHECKSUM_COMMENT)
    total = _folded(int.from_bytes(header.tostring().encode("ascii")) + hdu.datasum)
    header.set("CHECKSUM", _encoded(_ONES - total), _CHECKSUM_COMMENT)
    return str(header.tostring()).encode("ascii")


def _encoded(value: int) -> str:
    """Write a number as the FITS standard does (version 4.0, appendix J), so that the whole HDU sums up to -0."""
    characters = [""] * 16
    for position, byte in enumerate(value.to_bytes(4)):
        quarters = [0x30 + byte // 4] * 4
        quarters[0] += byte % 4
        while any(quarter in _EXCLUDED for quarter in quarters):
            for first in (0, 2):
                if quarters[first] in _EXCLUDED or quarters[first + 1] in _EXCLUDED:
                    quarters[first] += 1
                    quarters[first + 1] -= 1
        for number, quarter in enumerate(quarters):
            characters[4 * number + position] = chr(quarter)
    return "".join(characters[-1:] + characters[:-1])
