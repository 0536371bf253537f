"""Where an ARC CE is and who we are there."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ArcSettings:
    """One CE, with either a certificate (or proxy) or a bearer token."""

    # Of the CE's web service: "https://ce.example.org/arex".
    url: str
    # PEM file with certificate and key, or a proxy; read again when it changes.
    certificate: Path | None = None
    # PEM file of the key, when it is not in the same file.
    key: Path | None = None
    # File with a bearer token; read again for every call.
    token: Path | None = None
    # Folder with the certificates of authorities under their hashed names. None = those of this machine.
    authorities: Path | None = None
    # Where jobs go that name no queue. Empty = as the CE decides.
    queue: str = ""
    # PATH of jobs that do not inherit the environment. Empty = the system's.
    path: str = ""
    # Of one call.
    deadline_s: float = 60.0
    # Calls at the same time.
    connections: int = 16
    # The CE is not asked more often.
    poll_interval_s: float = 30.0
    # What is asked of the batch system beyond the limits of the job: for the wrapper, its transfers and its checks.
    extra_wall_time_s: float = 120.0
    extra_memory_bytes: int = 64 << 20
    # Nodes work in the folders that the CE shows, so that what running jobs have used can be read there.
    shared_session: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if (self.certificate is None) == (self.token is None):
            raise ValueError("an ARC CE needs either `certificate` or `token`: give one of them")
        for name in ("certificate", "key", "token", "authorities"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, Path(getattr(self, name)))

    @property
    def credential(self) -> Path:
        """The file that says who we are."""
        found = self.certificate or self.token
        assert found is not None
        return found

    @property
    def poll_interval(self) -> timedelta:
        """The pause between two polls."""
        return timedelta(seconds=self.poll_interval_s)
