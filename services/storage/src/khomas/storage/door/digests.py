"""Checksums over HTTP in the words of two standards: RFC 3230, which the grid has, and RFC 9530, which comes."""

import base64
import re
from collections.abc import Iterable, Mapping
from typing import Final

from khomas.storage.checksums import Algorithm, Hash, new_hash
from khomas.storage.door.refusal import Refusal
from khomas.storage.protocols.dav.answers import digests_of

# Offered, the quickest one first.
_OFFERED: Final = {one.value: one for one in (Algorithm.ADLER32, Algorithm.MD5, Algorithm.SHA256)}
_NAMES: Final = _OFFERED | {"adler": Algorithm.ADLER32}
_WANT = re.compile(r"\s*([A-Za-z0-9-]+)\s*(?:;\s*q=|=)?\s*([0-9.]*)\s*")


def wanted(headers: Mapping[str, str]) -> Algorithm | None:
    """Return the checksum that a request prefers among those that we have."""
    text = ",".join(filter(None, (headers.get("Want-Digest", ""), headers.get("Want-Repr-Digest", ""))))
    best: tuple[float, Algorithm] | None = None
    for part in text.split(","):
        match = _WANT.fullmatch(part)
        algorithm = _NAMES.get(match[1].lower()) if match else None
        weight = _weight(match[2]) if match else 0.0
        if algorithm is not None and weight > 0 and (best is None or weight > best[0]):
            best = weight, algorithm
    return best[1] if best else None


def headers_of(algorithm: Algorithm, value: str) -> dict[str, str]:
    """Return a checksum in both forms."""
    raw = base64.b64encode(bytes.fromhex(value)).decode()
    name = "adler" if algorithm is Algorithm.ADLER32 else algorithm.value
    old = value if algorithm is Algorithm.ADLER32 else raw
    return {"Digest": f"{algorithm.value}={old}", "Repr-Digest": f"{name}=:{raw}:"}


def announced(headers: Mapping[str, str]) -> dict[Algorithm, str]:
    """Return the checksums that come with a body."""
    modern = ",".join(filter(None, (headers.get("Repr-Digest", ""), headers.get("Content-Digest", ""))))
    return digests_of(headers.get("Digest", ""), modern)


class Hashes:
    """Several checksums of the same bytes."""

    def __init__(self, algorithms: Iterable[Algorithm]) -> None:
        self._hashes: dict[Algorithm, Hash] = {one: new_hash(one) for one in {Algorithm.ADLER32, *algorithms}}
        self.size_bytes = 0

    def add(self, piece: bytes) -> None:
        """Take the next bytes."""
        self.size_bytes += len(piece)
        for one in self._hashes.values():
            one.update(memoryview(piece))

    @property
    def adler32(self) -> str:
        """Return the one that is always there."""
        return self._hashes[Algorithm.ADLER32].hexdigest()

    def compare(self, expected: Mapping[Algorithm, str]) -> None:
        """Raise a Refusal if one is not as announced."""
        for algorithm, value in expected.items():
            found = self._hashes[algorithm].hexdigest()
            if found != value:
                message = f"{self.size_bytes} bytes arrived with {algorithm} {found}; announced was {value}."
                raise Refusal(422, "CHECKSUM_MISMATCH", message)


def _weight(text: str) -> float:
    try:
        return float(text) if text else 1.0
    except ValueError:
        return 0.0
