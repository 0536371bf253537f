"""A file with a secret: refused when others can read it, read again when it changes."""

import os
import shlex
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from khomas.kit.credentials.interface import Credential

# Larger ones are no credentials.
_MAX_BYTES = 1 << 20
_Signature = tuple[int, int, int, int]


class Unreadable(Exception):
    """What a file holds is not what it should be; the message holds nothing of it."""


def put_in_place(made: Path, path: Path) -> None:
    """Replace a secret in one step: who reads it never meets half of one."""
    made.chmod(0o600)
    made.replace(path)


class SecretFile:
    """Reads a file and keeps what was made of it, not its content."""

    def __init__(
        self, read: Callable[[bytes, os.stat_result], Credential], remedy: str, *, group_readable: bool = False
    ) -> None:
        self._read = read
        self._remedy = remedy
        self._forbidden = 0o037 if group_readable else 0o077
        self._seen: tuple[Path, _Signature] | None = None
        self._known = Credential(present=False)

    def look(self, path: Path | None) -> Credential:
        """Say what the file holds; a file that is missing, exposed or not understood is not present."""
        if path is None:
            return self._absent("there is no file", self._remedy)
        try:
            found = path.stat()
            signature = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_mode)
            if self._seen != (path, signature):
                self._known = self._fresh(path, found)
                self._seen = (path, signature)
        except OSError as error:
            self._seen = None
            return self._absent(f"{path} cannot be read: {error.strerror}", self._remedy)
        return self._known

    def _fresh(self, path: Path, found: os.stat_result) -> Credential:
        name = shlex.quote(str(path))
        if not stat.S_ISREG(found.st_mode):
            return self._absent(f"{path} is not a file", self._remedy)
        if found.st_uid not in (os.geteuid(), 0):
            return self._absent(f"{path} belongs to somebody else", f"chown {os.geteuid()} {name}")
        if found.st_mode & self._forbidden:
            mode = "u=rw,g=r,o=" if self._forbidden == 0o037 else "600"
            return self._absent(
                f"{path} can be used by others (mode {found.st_mode & 0o777:o})", f"chmod {mode} {name}"
            )
        if found.st_size > _MAX_BYTES:
            return self._absent(f"{path} is too large for a credential", self._remedy)
        try:
            return replace(self._read(path.read_bytes(), found), remedy=self._remedy)
        except Unreadable as error:
            return self._absent(f"{path}: {error}", self._remedy)

    @staticmethod
    def _absent(trouble: str, remedy: str) -> Credential:
        return Credential(present=False, trouble=trouble, remedy=remedy)
