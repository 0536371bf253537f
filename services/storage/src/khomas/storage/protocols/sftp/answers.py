"""What errors of asyncssh mean, and what attributes of SFTP say."""

from datetime import UTC, datetime
from typing import Final

import asyncssh

from khomas.storage.protocols.interface import Entry, Kind, Problem, ProtocolFault

# Version 3, which everybody speaks, has the first four; all else is "Failure" there.
_PROBLEMS: Final[dict[int, Problem]] = {
    asyncssh.FX_NO_SUCH_FILE: Problem.ABSENT,
    asyncssh.FX_PERMISSION_DENIED: Problem.REFUSED,
    # OpenSSH, about names that are too long.
    asyncssh.FX_BAD_MESSAGE: Problem.REFUSED,
    asyncssh.FX_OP_UNSUPPORTED: Problem.UNSUPPORTED,
    asyncssh.FX_NO_SUCH_PATH: Problem.ABSENT,
    asyncssh.FX_NOT_A_DIRECTORY: Problem.ABSENT,
    asyncssh.FX_FILE_ALREADY_EXISTS: Problem.TAKEN,
    asyncssh.FX_DIR_NOT_EMPTY: Problem.TAKEN,
    asyncssh.FX_FILE_IS_A_DIRECTORY: Problem.TAKEN,
    asyncssh.FX_WRITE_PROTECT: Problem.REFUSED,
    asyncssh.FX_CANNOT_DELETE: Problem.REFUSED,
    asyncssh.FX_INVALID_FILENAME: Problem.REFUSED,
    asyncssh.FX_LINK_LOOP: Problem.REFUSED,
    asyncssh.FX_NO_SPACE_ON_FILESYSTEM: Problem.FULL,
    asyncssh.FX_QUOTA_EXCEEDED: Problem.FULL,
    asyncssh.FX_NO_MEDIA: Problem.UNREACHABLE,
}
_KINDS: Final = {
    asyncssh.FILEXFER_TYPE_REGULAR: Kind.FILE,
    asyncssh.FILEXFER_TYPE_DIRECTORY: Kind.FOLDER,
}


def is_lost(error: BaseException | None) -> bool:
    """Tell whether the connection is to blame, and not what was asked."""
    if isinstance(error, asyncssh.SFTPError):
        return isinstance(error, asyncssh.SFTPConnectionLost | asyncssh.SFTPNoConnection)
    return isinstance(error, asyncssh.Error | OSError)


def fault_of(error: Exception) -> ProtocolFault:
    """Return what an error of an open session means."""
    words = str(error) or type(error).__name__
    if isinstance(error, TimeoutError):
        return ProtocolFault(Problem.PASSING, "no answer in time")
    if is_lost(error):
        return ProtocolFault(Problem.PASSING, f"the connection broke: {words}")
    code = error.code if isinstance(error, asyncssh.SFTPError) else asyncssh.FX_FAILURE
    return ProtocolFault(_PROBLEMS.get(code, Problem.PASSING), words)


def entry_of(path: str, found: asyncssh.SFTPAttrs) -> Entry:
    """Return what is at a path."""
    modified = None if found.mtime is None else datetime.fromtimestamp(found.mtime, UTC)
    kind = _KINDS.get(found.type, Kind.OTHER)
    return Entry(path, kind, (found.size or 0) if kind is not Kind.FOLDER else 0, modified)
