"""What errors of gfal2 mean."""

import errno
import re
from typing import Any, Final

from khomas.storage.protocols.interface import Problem, ProtocolFault

_ERRNO: Final = {
    errno.ENOENT: Problem.ABSENT,
    errno.ENOTDIR: Problem.ABSENT,
    errno.EEXIST: Problem.TAKEN,
    errno.EISDIR: Problem.TAKEN,
    errno.ENOTEMPTY: Problem.TAKEN,
    errno.EACCES: Problem.REFUSED,
    errno.EPERM: Problem.REFUSED,
    errno.EROFS: Problem.REFUSED,
    errno.ENAMETOOLONG: Problem.REFUSED,
    errno.ENOSPC: Problem.FULL,
    errno.EDQUOT: Problem.FULL,
    errno.ECONNREFUSED: Problem.UNREACHABLE,
    errno.EHOSTUNREACH: Problem.UNREACHABLE,
    errno.ENOSYS: Problem.UNSUPPORTED,
    errno.EOPNOTSUPP: Problem.UNSUPPORTED,
    errno.EPROTONOSUPPORT: Problem.CONFIGURATION,
}
# The server's own number is more exact than that of gfal2, which says "communication error on send" to most.
_NUMBER: Final = re.compile(r"GridFTP-Errno: (\d+)")
_WORDS: Final = (
    ("no space left", Problem.FULL),
    ("disk quota", Problem.FULL),
    ("permission denied", Problem.REFUSED),
    ("read-only file system", Problem.REFUSED),
    ("no such file", Problem.ABSENT),
    ("not a directory", Problem.ABSENT),
    ("file exists", Problem.TAKEN),
    ("unknown checksum algorithm", Problem.UNSUPPORTED),
    ("invalid value for url", Problem.REFUSED),
    ("connection refused", Problem.UNREACHABLE),
    ("unable to connect", Problem.UNREACHABLE),
    ("proxy expired", Problem.CREDENTIAL),
    ("credential", Problem.CREDENTIAL),
    ("authentication", Problem.CREDENTIAL),
    ("gss_", Problem.CREDENTIAL),
)
_MESSAGE: Final = 600


def fault_of(error: Any) -> ProtocolFault:
    """Return what an error, [errno, message], means."""
    code, words = int(error[0]), " ".join(str(error[1]).split())
    lower = words.lower()
    number = _NUMBER.search(words)
    problem = _ERRNO.get(int(number[1])) if number else None
    problem = problem or next((one for text, one in _WORDS if text in lower), None) or _ERRNO.get(code)
    return ProtocolFault(problem or Problem.PASSING, words[:_MESSAGE] or f"error {code}")


def results_of(results: list[Any]) -> list[Any]:
    """Return answers with faults in the place of errors."""
    return [fault_of(one["error"]) if isinstance(one, dict) else one for one in results]
