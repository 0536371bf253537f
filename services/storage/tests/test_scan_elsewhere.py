"""Of files on a server no more is fetched than has to be."""

import gzip
from collections.abc import AsyncGenerator, Collection, Sequence
from pathlib import Path
from typing import cast
from zlib import adler32

import pytest

from khomas.api.storage.v1 import storage_service_pb2 as pb
from khomas.storage.checksums import Algorithm
from khomas.storage.found import Found
from khomas.storage.protocols.interface import Abilities, Digest, Locality, Problem, ProtocolFault, Tape
from khomas.storage.protocols.posix import PosixProtocol
from khomas.storage.scanning import remote

HDUS = 4
DATA = 2880 * 400


class Server(PosixProtocol):
    """A folder that is reached like a server, which counts what it gives."""

    def __init__(self, root: Path, tells: bool) -> None:
        super().__init__(root)
        self.abilities = Abilities(checksums=(Algorithm.ADLER32,) if tells else ())
        self.given = 0

    async def checksum(self, paths: Sequence[str], algorithm: Algorithm) -> list[Digest | ProtocolFault]:
        """Know all but one."""
        told = await super().checksum(paths, algorithm)
        unknown = ProtocolFault(Problem.UNSUPPORTED, "not computed yet")
        return [unknown if path == "unknown" else one for path, one in zip(paths, told, strict=True)]

    async def get(self, path: str, start: int = 0, size_bytes: int | None = None) -> AsyncGenerator[memoryview, None]:
        """Count."""
        async for block in super().get(path, start, size_bytes):
            self.given += len(block)
            yield block


class TapeOf:
    """Some files are on tape only."""

    def __init__(self, paths: Collection[str]) -> None:
        self._paths = paths

    async def locality(self, paths: Sequence[str]) -> list[Locality | ProtocolFault]:
        """Tell which."""
        return [Locality.TAPE if path in self._paths else Locality.BOTH for path in paths]


def fits(name: str) -> bytes:
    """Make a file with some HDUs and much data."""
    found = b""
    for number in range(HDUS):
        first = "SIMPLE  =                    T" if number == 0 else "XTENSION= 'IMAGE   '"
        cards = [first, "BITPIX  = 8", "NAXIS   = 1", f"NAXIS1  = {DATA}", f"OBJECT  = '{name} {number}'", "END"]
        found += "".join(card.ljust(80) for card in cards).ljust(2880).encode() + bytes(DATA)
    return found


def lay(root: Path, **files: bytes) -> list[Found]:
    for name, content in files.items():
        (root / name.replace("_", ".")).write_bytes(content)
    return [Found(name.replace("_", "."), len(content), 0.0) for name, content in files.items()]


def objects(file: pb.ScannedFile) -> list[str]:
    return [card.value.text for card in file.cards]


async def test_headers_are_read_without_the_data_between_them(tmp_path: Path) -> None:
    server = Server(tmp_path, tells=True)
    found = lay(tmp_path, a_fits=fits("Crab"), b_fits=fits("Vela"))

    first, second = await remote.read(server, found, pb.ScanTreeRequest(checksums=True, cards=["OBJECT"]))

    assert objects(first) == [f"Crab {number}" for number in range(HDUS)]
    assert objects(second) == [f"Vela {number}" for number in range(HDUS)]
    assert first.checksums.adler32 == f"{adler32(fits('Crab')):08x}"
    assert not first.checksums.sha256
    assert 0 < server.given < sum(one.size_bytes for one in found) / 10


async def test_nothing_is_read_where_the_server_tells_checksums(tmp_path: Path) -> None:
    server = Server(tmp_path, tells=True)
    found = lay(tmp_path, a_dat=b"a" * 1000, unknown=b"u" * 7)

    first, unknown = await remote.read(server, found, pb.ScanTreeRequest(checksums=True))

    assert first.checksums.adler32 == f"{adler32(b'a' * 1000):08x}"
    assert unknown.checksums.adler32 == f"{adler32(b'u' * 7):08x}"
    assert unknown.checksums.sha256
    assert server.given == 7


async def test_what_is_on_tape_is_not_read(tmp_path: Path) -> None:
    server = Server(tmp_path, tells=True)
    server.tape = cast(Tape, TapeOf({"a.fits"}))
    found = lay(tmp_path, a_fits=fits("Crab"), b_fits=fits("Vela"))

    plain = await remote.read(server, found, pb.ScanTreeRequest(checksums=True))
    first, second = await remote.read(server, found, pb.ScanTreeRequest(checksums=True, cards=["OBJECT"]))

    assert [bool(one.checksums.adler32) for one in plain] == [True, True]
    assert "on tape" in first.error
    assert len(objects(second)) == HDUS


@pytest.mark.parametrize("tells", [True, False])
async def test_file_that_is_compressed_or_without_a_checksum_is_read_whole(tmp_path: Path, tells: bool) -> None:
    server = Server(tmp_path, tells=tells)
    found = lay(tmp_path, a_fits_gz=gzip.compress(fits("Crab")), b_fits=fits("Vela"))

    first, second = await remote.read(server, found, pb.ScanTreeRequest(checksums=True, cards=["OBJECT"]))

    assert (len(objects(first)), len(objects(second))) == (HDUS, HDUS)
    assert first.checksums.content_digest
    assert bool(second.checksums.content_digest) == (not tells)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"no FITS", "does not begin with SIMPLE"),
        (fits("Crab")[:-2880], "ends inside its data"),
        (fits("Crab")[: 2880 + DATA + 100], "ends inside a header"),
    ],
)
async def test_what_is_no_whole_fits_file_is_told(tmp_path: Path, content: bytes, error: str) -> None:
    server = Server(tmp_path, tells=True)

    (file,) = await remote.read(server, lay(tmp_path, a_fits=content), pb.ScanTreeRequest(cards=["OBJECT"]))

    assert error in file.error


@pytest.mark.parametrize("name", ["run_fits", "RUN_FITS_GZ", "run_fits_gz"])
async def test_compressed_file_is_known_by_its_bytes_and_not_by_its_name(tmp_path: Path, name: str) -> None:
    server = Server(tmp_path, tells=True)

    (file,) = await remote.read(
        server, lay(tmp_path, **{name: gzip.compress(fits("Crab"))}), pb.ScanTreeRequest(cards=["OBJECT"])
    )

    assert objects(file) == [f"Crab {number}" for number in range(HDUS)]
