"""Settings of the storage service."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

from khomas.kit.config import ServiceSettings
from khomas.kit.credentials import CredentialSettings


class ExecutorSettings(BaseModel):
    """An engine that moves files for us."""

    # An installed plug-in: "fts3".
    plugin: str
    address: str
    # One of the names in `credentials`; empty = none.
    credential: str = ""
    options: dict[str, str] = Field(default_factory=dict)


class RouteSettings(BaseModel):
    """Between which StorageElements an executor moves files; empty = any. The first route that matches counts."""

    executor: str
    source: str = ""
    destination: str = ""


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
    # With whom the door copies files for others: patterns of "scheme://host:port".
    door_peers: tuple[str, ...] = ("https://*",)
    # Whom it believes there: a folder of hashed certificates, or a file; empty = the system's authorities.
    door_authorities: Path | None = None
    # What lets us in at other storages, by the names that access points use.
    credentials: dict[str, CredentialSettings] = Field(default_factory=dict)
    # Threads that move or read bytes, one a file.
    data_threads: int = Field(default=4, gt=0)
    # Streams of transfers at once; each moves one large file, or some dozens of small ones.
    transfer_workers: int = Field(default=8, gt=0)
    # Streams that a link may carry in the beginning and at most; between them it finds out how many make it fastest.
    link_streams: int = Field(default=2, gt=0)
    max_link_streams: int = Field(default=32, gt=0)
    # Weights of accounts on whose behalf files are copied; 1 for all others.
    transfer_shares: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    # How long transfers are remembered that have ended.
    transfer_retention: timedelta = timedelta(days=30)
    # Other engines that move files, by name, and between which StorageElements they do.
    executors: dict[str, ExecutorSettings] = Field(default_factory=dict)
    executor_routes: list[RouteSettings] = Field(default_factory=list)
    # How often they are asked how far they are.
    executor_poll: timedelta = timedelta(seconds=10)
    transfer_attempts: int = Field(default=5, gt=0)
    # First pause after a failed attempt; it doubles with every one.
    transfer_pause: timedelta = timedelta(seconds=30)
    max_transfer_pause: timedelta = timedelta(hours=1)
    deletion_pause: timedelta = timedelta(minutes=1)
    # When copies of rules that could not be made are tried again, at all places.
    rule_pause: timedelta = timedelta(minutes=5)
    # Between two rounds through what still lies on a storage that is being emptied.
    drain_pause: timedelta = timedelta(seconds=10)
    lease: timedelta = timedelta(seconds=60)
    # Recalls that are wanted within this time go to a tape system as one request.
    recall_gather: timedelta = timedelta(seconds=2)
    # Between two questions how far a recall is, and after a front end did not answer.
    recall_poll: timedelta = timedelta(seconds=15)
    recall_pause: timedelta = timedelta(seconds=30)
    # A request may be asked after before it has come to the tape system.
    recall_grace: timedelta = timedelta(seconds=60)
    # Errors of the tape system itself; a front end that is away is waited for.
    recall_attempts: int = Field(default=5, gt=0)
    # How long files stay on disk if nobody says so.
    recall_lifetime: timedelta = timedelta(days=1)
    # How often queues are looked at when nobody calls.
    poll: timedelta = timedelta(seconds=1)
    check_interval: timedelta = timedelta(seconds=60)
    catalog_deadline: timedelta = timedelta(seconds=30)
    # What is done by itself for each StorageElement, unless its care policy says otherwise. A time of zero is never.
    # Every byte of every replica is read again within this time, at most so many a second.
    verify_period: timedelta = timedelta(days=90)
    verify_bytes_per_second: int = Field(default=20 * 1024 * 1024, ge=0)
    fixity_poll: timedelta = timedelta(seconds=10)
    # How often it is compared with the catalogue, names and sizes.
    reconcile_interval: timedelta = timedelta(days=7)
    # Comparisons stop and ask when more than this share of the files seems lost.
    max_lost_percent: float = Field(default=5.0, ge=0, le=100)
    # Lost and damaged replicas are brought again from good copies without asking.
    repair_automatically: bool = True
    repair_pause: timedelta = timedelta(seconds=5)
    # Files that nobody knows are no finding before they are this old.
    dark_grace: timedelta = timedelta(hours=1)
    # 0 = as fast as the storage can.
    deletions_per_second: float = Field(default=0.0, ge=0)
    probe_interval: timedelta = timedelta(minutes=5)
    probe_poll: timedelta = timedelta(seconds=10)
