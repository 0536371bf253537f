"""What answers of servers mean: status, words, headers. Pure functions on what was recorded from real ones."""

import base64
import binascii
import re
from dataclasses import dataclass
from functools import cache
from typing import Final

from khomas.storage.checksums import Algorithm
from khomas.storage.protocols.interface import Problem, ProtocolFault

_STATUS: Final = {
    401: Problem.CREDENTIAL,
    403: Problem.REFUSED,
    404: Problem.ABSENT,
    405: Problem.UNSUPPORTED,
    # The folder above is missing.
    409: Problem.ABSENT,
    410: Problem.ABSENT,
    412: Problem.TAKEN,
    413: Problem.FULL,
    414: Problem.REFUSED,
    501: Problem.UNSUPPORTED,
    507: Problem.FULL,
}
# XrdHttp answers 500 and 400 to most things, with these words at the end of the body.
_WORDS: Final = {
    "no such file or directory": Problem.ABSENT,
    "not a directory": Problem.ABSENT,
    "is a directory": Problem.TAKEN,
    "file exists": Problem.TAKEN,
    "directory not empty": Problem.TAKEN,
    "permission denied": Problem.REFUSED,
    "operation not permitted": Problem.REFUSED,
    "read-only file system": Problem.REFUSED,
    "no space left on device": Problem.FULL,
    "disk quota exceeded": Problem.FULL,
}
# Known to copy for others, besides XrdHttp: our own door, and two that were not tried here.
_COPYING: Final = ("Khomas", "dCache", "StoRM")
_SPARING: Final = ("Khomas", "Apache", "nginx")
_TAGS: Final = re.compile(r"(?is)<(head|style|script)\b.*?</\1>|<[^>]*>")
# The name of RFC 9530 for Adler-32 is another one than that of RFC 3230.
_ALGORITHMS: Final = {"adler": Algorithm.ADLER32} | {one.value: one for one in Algorithm}
_BYTES: Final = {Algorithm.ADLER32: 4, Algorithm.CRC32: 4, Algorithm.MD5: 16, Algorithm.SHA256: 32}
_REMOTE: Final = re.compile(r"(?i)remote side|remote server|could(n't| not) (connect|resolve)|ssl")
_REMOTE_STATUS: Final = re.compile(r"status code (\d{3})")
_MESSAGE: Final = 300


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a server does otherwise than the standard."""

    # Addresses in listings and in the header Destination are quoted.
    quotes: bool = True
    # "100 Continue" is followed by an answer.
    continues: bool = True
    # What comes after a question mark in a name, quoted or not, is not part of the name.
    cuts: bool = False
    # Ranges that reach past the end are answered with as much as there is.
    shortens: bool = True
    # So many checksums may be asked for at once: XRootD computes four (xrootd.chksum max), and XrdHttp answers some of
    # those that have to wait for that half a minute later, or not at all. Others than us ask, too.
    sums_at_once: int = 16
    # Keeps "Overwrite: F", so that nobody has to look first.
    spares: bool = False
    # Copies for others. Whoever does not, copies to the same path within itself, and calls that done.
    copies: bool = False


@cache
def dialect_of(server: str) -> Dialect:
    """Return the ways of a server that calls itself so."""
    if server.startswith("Xroot"):
        # Its "100 Continue" comes with "Connection: Close".
        return Dialect(quotes=False, continues=False, cuts=True, shortens=False, sums_at_once=2, copies=True)
    return Dialect(spares=server.startswith(_SPARING), copies=server.startswith(_COPYING))


def fault_of(method: str, status: int, body: str) -> ProtocolFault:
    """Return what an answer that is no success means."""
    words = " ".join(_TAGS.sub(" ", body).split())
    problem = _STATUS.get(status) or problem_of(words)
    if status == 400 and method in ("PROPFIND", "MKCOL", "MOVE"):
        # Apache, about a name below a file.
        problem = Problem.ABSENT
    if problem is None:
        problem = Problem.PASSING if status >= 500 or status in (408, 423, 425, 429) else Problem.REFUSED
    return ProtocolFault(problem, f"{method} was answered with {status}: {words[:_MESSAGE]}".rstrip(": "))


def problem_of(words: str) -> Problem | None:
    """Return what the words of an error mean."""
    return next((problem for text, problem in _WORDS.items() if text in words.lower()), None)


def failure_of(line: str) -> ProtocolFault:
    """Return what the last line of a third-party copy that failed means."""
    status = _REMOTE_STATUS.search(line)
    other_end = bool(_REMOTE.search(line))
    problem = _STATUS.get(int(status[1])) if status else None
    if problem is None and "connect" in line.lower():
        problem = Problem.UNREACHABLE
    return ProtocolFault(problem or problem_of(line) or Problem.PASSING, line[:_MESSAGE], other_end=other_end)


def digests_of(digest: str, representation: str) -> dict[Algorithm, str]:
    """Return the checksums in the headers Digest (RFC 3230) and Repr-Digest (RFC 9530) as hexadecimal digits."""
    found: dict[Algorithm, str] = {}
    for part in [*digest.split(","), *representation.split(",")]:
        name, _, value = part.strip().partition("=")
        algorithm = _ALGORITHMS.get(name.strip().lower())
        text = hexadecimal(algorithm, value.strip()) if algorithm else None
        # A server that was asked for one it has not may answer with another one: only the name counts.
        if algorithm is not None and text is not None:
            found[algorithm] = text
    return found


def hexadecimal(algorithm: Algorithm, value: str) -> str | None:
    """Return a checksum as hexadecimal digits of full length, whether it is hexadecimal or base64; None if neither."""
    size = _BYTES[algorithm]
    if value.startswith(":"):
        value = value.strip(":")
    elif re.fullmatch(f"[0-9a-fA-F]{{1,{2 * size}}}", value):
        # Some servers leave out zeros in front.
        return value.lower().zfill(2 * size)
    try:
        raw = base64.b64decode(value, validate=True)
    except binascii.Error:
        return None
    return raw.hex() if len(raw) == size else None
