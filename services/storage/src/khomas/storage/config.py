"""Settings of the storage service."""

from datetime import timedelta
from pathlib import Path

from pydantic import Field

from khomas.kit.config import ServiceSettings
from khomas.kit.credentials import CredentialSettings


class StorageSettings(ServiceSettings, env_prefix="KHOMAS_STORAGE_"):
    """What can be set; every default works on a laptop."""

    # Root of the StorageElement `local`, made at the start. Embedded installations have one by default.
    local_root: Path | None = None
    # Flush every upload and every copy to the disk before it is announced. Without it an acknowledged commit
    # survives the end of any process, but not a power cut.
    fsync: bool = False
    # Files that did not come through the door get a SHA-256 up to this size; larger ones when the sender gives
    # one to compare with. Adler-32 is always computed.
    sha256_limit_bytes: int = Field(default=256 * 1024 * 1024, ge=0)
    # Where uploads go that name no StorageElement; if there is none of this id, to the first one that takes files.
    default_storage_element: str = "local"
    grant_lifetime: timedelta = timedelta(hours=1)
    max_grant_lifetime: timedelta = timedelta(days=7)
    # What lets us in at other storages, by the names that access points use.
    credentials: dict[str, CredentialSettings] = Field(default_factory=dict)
    # Threads that move or read bytes, one a file.
    data_threads: int = Field(default=4, gt=0)
    transfer_workers: int = Field(default=4, gt=0)
    transfer_attempts: int = Field(default=5, gt=0)
    # First pause after a failed attempt; it doubles with every one.
    transfer_pause: timedelta = timedelta(seconds=30)
    max_transfer_pause: timedelta = timedelta(hours=1)
    deletion_pause: timedelta = timedelta(minutes=1)
    lease: timedelta = timedelta(seconds=60)
    # How often queues are looked at when nobody calls.
    poll: timedelta = timedelta(seconds=1)
    check_interval: timedelta = timedelta(seconds=60)
    catalog_deadline: timedelta = timedelta(seconds=30)
