"""Address and options of an access point of `sftp`."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field


class SftpSettings(BaseModel):
    """Options of an access point."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Private key, where no credential is named. Empty = the usual keys of the user of the service, and its agent.
    key: Path | None = None
    # Keys of servers that are believed. Empty = ~/.ssh/known_hosts.
    known_hosts: Path | None = None
    # Sessions over the connection at once; sshd allows 10 if its MaxSessions is not set.
    sessions: int = Field(default=8, gt=1, le=1000)
    # Requests about names on their way at once.
    requests: int = Field(default=64, gt=0, le=10_000)
    # Until an answer about one name.
    seconds: float = Field(default=60.0, gt=0)
    connect_seconds: float = Field(default=20.0, gt=0)
    # Without an answer while bytes move.
    idle_seconds: float = Field(default=60.0, gt=0)


class Place:
    """Where the storage is: server, user, and the folder that is its root."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        if parts.scheme != "sftp" or not parts.hostname:
            raise ValueError(f"the address is sftp://user@host/path, and not {address}")
        if parts.query or parts.fragment or parts.password is not None:
            raise ValueError("the address has no password, question mark or hash sign; credentials have names")
        self.host = parts.hostname
        self.port = parts.port or 22
        self.user = unquote(parts.username) if parts.username else None
        # Without a slash at its end; empty for "/".
        self.root = unquote(parts.path).rstrip("/")
        if ".." in self.root.split("/"):
            raise ValueError("the path of the address has no ..")

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    def at(self, path: str) -> str:
        """Return the path on the server."""
        return f"{self.root}/{path}" if path else self.root or "/"
