"""Settings of a namespace of a cluster."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from khomas.scheduler.backends.spool.settings import SpoolSettings

_NOWHERE = Path()
_HOUR, _WEEK = 3600, 7 * 86400


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesSettings(SpoolSettings):
    """A namespace of a cluster; with a volume of which pods and service see the same folder, or without one."""

    # The folder of jobs on that volume; without it jobs go by Secrets, and their logs and records by the API server.
    spool: Path = _NOWHERE
    # Where its API server answers: `https://cluster:6443`.
    url: str
    # A token of a service account; a new one may be written there at any time.
    token_file: Path
    # Who signed the API server's certificate; None = as this machine trusts.
    ca_file: Path | None = None
    namespace: str
    # For jobs that name none: it has `python3` and `/bin/sh`.
    image: str
    # The volume, as a pod has it: {"persistentVolumeClaim": {"claimName": "khomas"}}.
    volume: Mapping[str, Any] = field(default_factory=dict)
    # Where the pods have it; the service has it under the same path. None = it is the folder of jobs.
    mount: Path | None = None
    # Without a volume: whose jobs these are, where several schedulers share a namespace.
    group: str = "khomas"
    # User and group of the pods: those whom the folder of jobs belongs to.
    user_id: int = field(default_factory=os.getuid)
    group_id: int = field(default_factory=os.getgid)
    # How long the cluster keeps what has ended; 0 = an hour with a volume, a week without: there it has the records.
    keep_seconds: int = 0
    # Beyond the wall time of a job, for bringing files in and out.
    margin_seconds: float = 300.0
    # Between the order to end and SIGKILL by the cluster; the wrapper is quicker.
    vacate_seconds: int = 900
    # Without a volume: what a cancelled job has beyond its grace, to leave its record.
    cancel_seconds: float = 15.0

    def __post_init__(self) -> None:
        """Refuse what is for commands, and half of a volume."""
        if self.shared:
            SpoolSettings.__post_init__(self)
        if self.shared != bool(self.volume):
            raise ValueError("spool and volume go together: give both, or none of them for a cluster without a volume")
        if self.ssh or self.prefix or self.tools:
            raise ValueError("kubernetes runs no commands: leave out ssh, prefix and tools")
        if not self.url.startswith(("https://", "http://127.0.0.1:")):
            raise ValueError(f"url must be the address of the API server, https://host:port: {self.url!r}")

    @property
    def shared(self) -> bool:
        """Whether pods and service see the same folder of jobs."""
        return self.spool != _NOWHERE

    @property
    def kept_seconds(self) -> int:
        """How long the cluster keeps what has ended."""
        return self.keep_seconds or (_HOUR if self.shared else _WEEK)
