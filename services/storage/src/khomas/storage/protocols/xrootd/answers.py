"""What answers of XRootD servers mean: numbers of errors, words, attributes."""

from datetime import UTC, datetime
from typing import Any, Final

from XRootD.client.flags import StatInfoFlags

from khomas.storage.checksums import Algorithm
from khomas.storage.protocols.interface import Digest, Entry, Kind, Problem, ProtocolFault, Room

# What the server says: XProtocol.hh, XErrorCode.
_SERVER: Final = {
    3002: Problem.REFUSED,
    3009: Problem.FULL,
    3010: Problem.REFUSED,
    3011: Problem.ABSENT,
    3013: Problem.UNSUPPORTED,
    3016: Problem.TAKEN,
    3017: Problem.REFUSED,
    3018: Problem.TAKEN,
    3019: Problem.CHECKSUM,
    3021: Problem.FULL,
    3025: Problem.REFUSED,
    3028: Problem.CREDENTIAL,
    3030: Problem.CREDENTIAL,
}
# "Error of the file system" is one number for all of these.
_WORDS: Final = {
    "no such file or directory": Problem.ABSENT,
    "not a directory": Problem.ABSENT,
    "is a directory": Problem.TAKEN,
    "file exists": Problem.TAKEN,
    "directory not empty": Problem.TAKEN,
    "file name too long": Problem.REFUSED,
    "permission denied": Problem.REFUSED,
    "operation not permitted": Problem.REFUSED,
    "read-only file system": Problem.REFUSED,
    "no space left on device": Problem.FULL,
    "disk quota exceeded": Problem.FULL,
    "not supported": Problem.UNSUPPORTED,
}
# What the library says by itself: XrdClStatus.hh.
_LIBRARY: Final = {
    13: Problem.UNSUPPORTED,
    15: Problem.UNSUPPORTED,
    101: Problem.UNREACHABLE,
    103: Problem.UNREACHABLE,
    108: Problem.UNREACHABLE,
    110: Problem.CONFIGURATION,
    203: Problem.CREDENTIAL,
    204: Problem.CREDENTIAL,
    205: Problem.UNSUPPORTED,
    304: Problem.ABSENT,
}
_SAID_BY_SERVER: Final = 400
_MESSAGE: Final = 300
_DIGITS: Final = {Algorithm.ADLER32: 8, Algorithm.MD5: 32}


def fault_of(status: Any) -> ProtocolFault:
    """Return what a status that is not good means."""
    words = " ".join(status.message.replace("[ERROR]", "").replace("[FATAL]", "").split())[:_MESSAGE]
    if status.code == _SAID_BY_SERVER:
        problem = _SERVER.get(status.errno) or problem_of(words)
    else:
        problem = _LIBRARY.get(status.code)
    return ProtocolFault(problem or Problem.PASSING, words or f"error {status.code}")


def problem_of(words: str) -> Problem | None:
    """Return what the words of an error mean."""
    return next((problem for text, problem in _WORDS.items() if text in words.lower()), None)


def entry_of(path: str, found: Any) -> Entry:
    """Return what is at a path."""
    kind = Kind.FILE
    if found.flags & StatInfoFlags.IS_DIR:
        kind = Kind.FOLDER
    elif found.flags & StatInfoFlags.OTHER:
        kind = Kind.OTHER
    return Entry(path, kind, found.size if kind is not Kind.FOLDER else 0, datetime.fromtimestamp(found.modtime, UTC))


def text_of(answer: bytes) -> str:
    """Return the text of an answer. What follows its end is not meant for anybody."""
    return answer.partition(b"\0")[0].decode(errors="replace").strip()


def digest_of(answer: bytes, wanted: Algorithm) -> Digest:
    """Return the checksum in an answer; UNSUPPORTED for another one, with which servers answer if they lack it."""
    name, _, value = text_of(answer).partition(" ")
    if name.lower() != wanted or not value:
        raise ProtocolFault(Problem.UNSUPPORTED, f"asked for {wanted}, the server answered with {name or 'nothing'}")
    # Some servers leave out zeros in front.
    return Digest(wanted, value.strip().lower().zfill(_DIGITS[wanted]))


def room_of(answer: bytes) -> Room:
    """Return the space in an answer of `query space`."""
    pairs = (one.partition("=") for one in text_of(answer).split("&"))
    told = {name: int(value) for name, _, value in pairs if value.isdecimal()}
    return Room(told.get("oss.free"), told.get("oss.space"))
