"""What a scan reads of a file that it has found: checksums, and cards of FITS headers."""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from khomas.api.common.v1 import value_pb2
from khomas.api.storage.v1 import storage_service_pb2 as pb
from khomas.storage import fits
from khomas.storage.errors import PathRefused
from khomas.storage.found import Found
from khomas.storage.uploads import staging

_MAX_INTEGER: Final = 2**63


def read(one: Found, local: Callable[[str], Path], request: pb.ScanTreeRequest) -> pb.ScannedFile:
    """Read a file of this machine; blocks."""
    if one.error:
        return pb.ScannedFile(path=one.path, error=one.error)
    file = unread(one)
    try:
        path = local(one.path)
        if request.checksums:
            sums = staging.sums_of(path, sha256=True)
            file.size_bytes = sums.size_bytes
            file.checksums.adler32, file.checksums.sha256 = sums.adler32, sums.sha256
        if fits.looks_like_fits(one.path) and (request.checksums or request.cards):
            _add_fits(file, path, request)
    except fits.NotFits as error:
        return pb.ScannedFile(path=one.path, error=f"is no FITS file: {error}")
    except (OSError, PathRefused) as error:
        return pb.ScannedFile(path=one.path, error=f"cannot be read: {error}")
    return file


def _add_fits(file: pb.ScannedFile, path: Path, request: pb.ScanTreeRequest) -> None:
    try:
        hdus = fits.read_hdus(path, datasums=request.checksums)
    except fits.NotFits:
        if request.cards:
            raise
        return
    if request.checksums:
        file.checksums.content_digest = fits.content_digest(hdus)
    file.cards.extend(cards_of(hdus, request))


def unread(one: Found) -> pb.ScannedFile:
    """Tell what is known of a file before it is read."""
    file = pb.ScannedFile(path=one.path, size_bytes=one.size_bytes)
    file.modify_time.FromDatetime(datetime.fromtimestamp(one.modify_time, UTC))
    return file


def cards_of(hdus: Sequence[fits.Hdu], request: pb.ScanTreeRequest) -> Iterator[pb.HeaderCard]:
    """Yield the cards that are asked for."""
    for hdu in hdus:
        for card in request.cards:
            if card in hdu.cards:
                yield pb.HeaderCard(hdu=hdu.name, card=card, value=_value(hdu.cards[card]))


def _value(value: fits.CardValue) -> value_pb2.Value:
    match value:
        case bool():
            return value_pb2.Value(boolean=value)
        case int() if -_MAX_INTEGER <= value < _MAX_INTEGER:
            return value_pb2.Value(integer=value)
        case int() | float():
            return value_pb2.Value(number=float(value))
        case str():
            return value_pb2.Value(text=value)
