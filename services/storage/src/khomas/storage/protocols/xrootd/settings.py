"""Address and options of an access point of `root`."""

from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field

_PORT: Final = 1094
_SCHEMES: Final = frozenset({"root", "roots", "xroot", "xroots"})


class XrootdSettings(BaseModel):
    """Options of an access point."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Folder with hashed certificates of authorities. One for the whole process, as the library behind this wants it;
    # empty = the system's.
    authorities: Path | None = None
    # Tokens are sent over connections that others may read.
    clear_tokens: bool = False
    # The storage has tape, of which files are recalled by `prepare`.
    tape: bool = False
    # Files of one request to recall; XRootD takes 48 if its `-maxfiles` is not set.
    stage_files: int = Field(default=1000, gt=0, le=10_000)
    # Requests about names on their way at once.
    requests: int = Field(default=256, gt=0, le=10_000)
    # Checksums at once; the server has more of them wait for many seconds (`xrootd.chksum max 4` if it is not set).
    checksums: int = Field(default=4, gt=0, le=1000)
    # Until an answer about one name.
    seconds: float = Field(default=60.0, gt=0)
    # Until a checksum, which a server may have to compute first.
    checksum_seconds: float = Field(default=1800.0, gt=0)
    # Without an answer while bytes move.
    idle_seconds: float = Field(default=60.0, gt=0)


class Place:
    """Where the storage is: server, and the folder that is its root."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        if parts.scheme not in _SCHEMES or not parts.hostname:
            raise ValueError(f"the address is root://host/path, or roots:// over TLS, and not {address}")
        if parts.query or parts.fragment or parts.username or parts.password:
            raise ValueError("the address has no user, question mark or hash sign; credentials have names of their own")
        self.secure = parts.scheme.endswith("s")
        self.scheme = "roots" if self.secure else "root"
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        self.server = f"{host}:{parts.port or _PORT}"
        # Without a slash at its end; empty for "/".
        self.root = "/" + unquote(parts.path).strip("/") if parts.path.strip("/") else ""
        if ".." in self.root.split("/"):
            raise ValueError("the path of the address has no ..")

    def __str__(self) -> str:
        return self.server

    def at(self, path: str) -> str:
        """Return the path on the server."""
        return f"{self.root}/{path}" if path else self.root or "/"
