"""Address and options of an access point of `s3`."""

from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from khomas.storage.checksums import Algorithm

# Objects of these have to be restored before they can be read.
_ARCHIVES: Final = ("GLACIER", "DEEP_ARCHIVE")
_MIB: Final = 1 << 20


class S3Settings(BaseModel):
    """Options of an access point."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    region: str = "us-east-1"
    # HTTP without TLS, for a server on the same machine or network.
    plain: bool = False
    # File of certificates that are believed instead of the usual ones.
    authorities: Path | None = None
    # The bucket is part of the host name, as the newer buckets of AWS want it.
    bucket_in_host: bool = False
    # Who reads a file gets an address of the store; false where it is not reached from there.
    presigned: bool = True
    # What the server computes itself from what it got, with commas between. The MD5 is the ETag of an object that came
    # in one piece. SHA-256 and CRC-32 are only for servers that compare what they are told with what they got.
    checksums: Annotated[
        tuple[Literal[Algorithm.MD5, Algorithm.SHA256, Algorithm.CRC32], ...],
        BeforeValidator(lambda value: value.split(",") if isinstance(value, str) and value else value or ()),
    ] = (Algorithm.MD5,)
    # Of files when they get their name; empty = what the server does by default. Hidden ones always have the default.
    storage_class: str = ""
    restore_tier: Literal["Standard", "Bulk", "Expedited"] = "Standard"
    # Larger files are sent in parts of at least this size.
    part_bytes: int = Field(default=16 * _MIB, ge=5 * _MIB, le=5120 * _MIB)
    parts_at_once: int = Field(default=4, gt=0, le=64)
    # Larger objects are copied in parts.
    copy_bytes: int = Field(default=5120 * _MIB, ge=5 * _MIB, le=5120 * _MIB)
    # Requests about names on their way at once.
    requests: int = Field(default=32, gt=0, le=1000)
    seconds: float = Field(default=60.0, gt=0)
    connect_seconds: float = Field(default=10.0, gt=0)
    idle_seconds: float = Field(default=60.0, gt=0)
    # As told by whoever runs the store: S3 itself has no such request.
    total_bytes: int | None = Field(default=None, gt=0)

    @property
    def archived(self) -> bool:
        """Tell whether files have to be restored before they can be read."""
        return self.storage_class in _ARCHIVES


class Bucket:
    """Where the storage is: server, bucket, and what all keys begin with."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        if parts.scheme != "s3" or not parts.hostname:
            raise ValueError(f"the address is s3://host:port/bucket/prefix, and not {address}")
        if parts.query or parts.fragment or parts.username is not None:
            raise ValueError("the address has no user, question mark or hash sign; credentials have names")
        name, _, prefix = unquote(parts.path).strip("/").partition("/")
        if not name:
            raise ValueError("the address names no bucket: s3://host:port/bucket/prefix")
        if {"", ".", ".."} & set(prefix.split("/")) and prefix:
            raise ValueError("the prefix of the address has no empty parts, . or ..")
        self.host = parts.netloc
        self.name = name
        self.prefix = f"{prefix}/" if prefix else ""

    def __str__(self) -> str:
        return f"{self.host}/{self.name}"

    def key(self, path: str) -> str:
        """Return the key of a path."""
        return self.prefix + path

    def path(self, key: str) -> str:
        """Return the path of a key."""
        return key.removeprefix(self.prefix)
