"""Settings of the scheduler."""

from datetime import timedelta
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from khomas.kit.config import ServiceSettings
from khomas.kit.credentials import CredentialSettings, KeeperSettings


class BackendSettings(BaseModel):
    """One backend: which plug-in, where it is, how much it gets."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Plug-in of the entry-point group `khomas.scheduler.backends`.
    kind: str
    site: str = "local"
    # Jobs handed over that have not ended; the rest waits here, where priorities count.
    max_jobs: int = Field(default=1000, gt=0)
    # Name in `credentials`: without it, good for as long as a job runs, nothing is handed over. Empty = none needed.
    credential: str = ""
    # Queues that are chosen for jobs that name none, beside the system's default. Empty = all.
    queues: tuple[str, ...] = ()
    # Factor on its rank.
    priority: float = Field(default=1.0, ge=0)
    # What jobs find there, beside what the queues tell: "x86_64-el9".
    platforms: tuple[str, ...] = ()
    # Whether it gets test jobs, where they are set up.
    test_jobs: bool = True
    # What the plug-in's own settings take.
    options: dict[str, Any] = {}


class TestJobSettings(BaseModel):
    """Small jobs that try each backend out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # How often. Unset = there are none.
    every: timedelta | None = Field(default=None, gt=timedelta(0))
    command: tuple[str, ...] = Field(default=("/bin/sh", "-c", "uname -a && df -P ."), min_length=1)
    wall_time: timedelta = timedelta(minutes=5)
    # One that has not ended by then counts as failed.
    patience: timedelta = timedelta(hours=6)
    share: str = ""
    retain: timedelta = timedelta(days=1)


class BanSettings(BaseModel):
    """When a backend is banned by itself, and for how long."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Submissions that went wrong in a row. 0 = never.
    refused: int = Field(default=10, ge=0)
    # Banned when less than `min_rate` of at least `sample` recent jobs (at most 50) were brought to their end.
    sample: int = Field(default=20, gt=0, le=50)
    min_rate: float = Field(default=0.2, ge=0, le=1)
    # Doubled each time.
    first_pause: timedelta = timedelta(minutes=5)
    longest_pause: timedelta = timedelta(hours=6)


class ShareSettings(BaseModel):
    """One account."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Against its siblings.
    weight: float = Field(default=1.0, gt=0)
    # Higher classes are served first, whatever was used.
    priority_class: int = 0
    # Part of all slots that is kept free for it: 0.2 for data taking.
    reserved: float = Field(default=0.0, ge=0, le=1)
    # Subjects and groups that may use it. Empty = everybody.
    members: tuple[str, ...] = ()
    max_queued: int | None = Field(default=None, ge=0)
    max_running: int | None = Field(default=None, ge=0)
    max_cpu_per_day: timedelta | None = None


class TesSettings(BaseModel):
    """The HTTP door for clients of GA4GH TES, at the address of `http`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = False
    # Images of tasks, as shell patterns, and the platform that jobs then ask for; empty = any node. The first that
    # matches counts; other images are refused, because tasks run without a container.
    images: dict[str, str] = {}
    # How the service calls itself, in reverse domain order: "org.example.tes". Empty = after the VO.
    service_id: str = ""
    # Of those who run it. Empty = the address of the door.
    organization_url: str = ""


class SchedulerSettings(ServiceSettings, env_prefix="KHOMAS_SCHEDULER_"):
    """What can be set; every default works on a laptop."""

    # By name. Empty = this machine, as `local`.
    backends: dict[str, BackendSettings] = Field(default_factory=dict)
    # Plug-in of the entry-point group `khomas.scheduler.rankings`.
    ranking: str = "default"
    test_jobs: TestJobSettings = TestJobSettings()
    bans: BanSettings = BanSettings()
    # Accounts by path, "hess/mc". Empty = there are none: the highest priority first, then who waits longest.
    shares: dict[str, ShareSettings] = Field(default_factory=dict)
    # Account of jobs that name none.
    default_share: str = "default"
    # After so long what was used counts half.
    share_half_life: timedelta = Field(default=timedelta(days=7), gt=timedelta(0))
    tes: TesSettings = TesSettings()
    # Towards batch and grid systems, by name.
    credentials: dict[str, CredentialSettings] = Field(default_factory=dict)
    keeper: KeeperSettings = KeeperSettings()
    # A credential must outlast the wall time of a job by so much.
    credential_margin: timedelta = timedelta(minutes=5)
    # Jobs, their logs and sandbox files are kept so long after their ends. Unset = for ever, but for jobs that say.
    retain: timedelta | None = None
    # Uploaded contents are kept so long after no job reads them any more. Unset = for ever.
    retain_sandboxes: timedelta | None = None
    # What was said to batch systems is kept so long.
    retain_commands: timedelta = Field(default=timedelta(days=30), gt=timedelta(0))
    # How often old ones are looked for.
    retention_pause: timedelta = timedelta(minutes=10)
    # Whether this process takes part in working on jobs; one that does not only answers calls.
    engine: bool = True
    # Attempts of a job whose policy does not say.
    max_attempts: int = Field(default=3, gt=0)
    initial_backoff: timedelta = timedelta(seconds=5)
    max_backoff: timedelta = timedelta(minutes=10)
    heartbeat_timeout: timedelta = timedelta(minutes=5)
    # Where a backend can tell changes alone, everything is looked at so often: also what running jobs have used.
    usage_interval: timedelta = timedelta(seconds=10)
    # Jobs that wait for input, or run, for less are never called slow.
    slow_after: timedelta = timedelta(minutes=10)
    # Pause before it is looked whether something arrived whose handover went wrong.
    find_pause: timedelta = timedelta(seconds=2)
    # An attempt is lost after so many complete polls without it, over at least this time.
    lost_after_polls: int = Field(default=3, gt=1)
    lost_after: timedelta = timedelta(seconds=20)
    # How often what others may have changed is looked at.
    poll: timedelta = timedelta(seconds=1)
    # Patience with a backend and with another service.
    backend_deadline: timedelta = timedelta(seconds=60)
    service_deadline: timedelta = timedelta(seconds=30)
    # Inputs must be read within this time after the handover. Uploads are renewed while their attempts are open.
    grant_lifetime: timedelta = timedelta(days=7)
    # Only one process works on the jobs of a database; another one takes over after this time.
    lease: timedelta = timedelta(seconds=30)
    # Folders of ended jobs are taken away from the backend after this time, logs and sandbox files are kept here.
    collect_after: timedelta = timedelta(seconds=10)
