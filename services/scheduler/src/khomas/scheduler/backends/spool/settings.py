"""Settings that all backends beside a folder of jobs have."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from khomas.scheduler.backends.spool.hosts import Host, LocalHost

_UNSAFE = set("\"'\\$`\n ")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolSettings:
    """Where jobs are kept and how the commands are run. The folder must be the same one on the nodes."""

    spool: Path
    # Environment of the commands, added to that of the host.
    env: Mapping[str, str] = field(default_factory=dict)
    # Goes in front of everything that is run on this machine.
    prefix: Sequence[str] = ()
    # Folder of the commands; empty = they are on the PATH of the host.
    tools: str = ""
    # Patience with one command.
    command_seconds: float = 30.0
    poll_seconds: float = 5.0
    # A job without a record has so long for it to arrive.
    settle_seconds: float = 5.0
    max_array: int = 1000
    max_batch: int = 1000
    node_python: str = "python3"
    # PATH of jobs that do not inherit the environment; empty = the system's.
    path: str = ""
    # The nodes see the scheduler's own state folder under the same path.
    shared_state: bool = False
    # A submit host behind ssh instead of this machine: `[user@]name[:port]`.
    ssh: str = ""
    ssh_key: Path | None = None
    ssh_known_hosts: Path | None = None
    # Python on the submit host; empty = `python3` behind ssh, this one here.
    host_python: str = ""

    def __post_init__(self) -> None:
        """Refuse a folder that a shell would misread."""
        if not str(self.spool).startswith("/") or _UNSAFE & set(str(self.spool)):
            raise ValueError(f"spool must be an absolute path without spaces, quotes and $: {str(self.spool)!r}")

    def tool(self, name: str) -> str:
        """The command of this name."""
        return f"{self.tools}/{name}" if self.tools else name

    def host(self) -> Host:
        """Where the commands run."""
        if self.ssh:
            from khomas.scheduler.backends.spool.ssh_host import SshHost

            python = self.host_python or "python3"
            return SshHost(self.ssh, self.ssh_key, self.ssh_known_hosts, python)
        return LocalHost(self.prefix, self.host_python) if self.host_python else LocalHost(self.prefix)


@dataclass(frozen=True, slots=True, kw_only=True)
class PilotSettings(SpoolSettings):
    """Batch systems that take pilots: jobs that run short jobs one after the other."""

    # At most so many at the same time; 0 = every job goes by itself.
    pilots: int = 32
    # The following are the most that a pilot asks for; it asks for what the jobs that wait for it need together.
    pilot_cores: int = 4
    pilot_memory_bytes: int = 16 << 30
    pilot_wall_s: float = 4 * 3600.0
    # A pilot ends after so long without work.
    pilot_idle_s: float = 60.0
    # Empty = the batch system's own choice; jobs that ask for another queue go by themselves.
    pilot_queue: str = ""
    # Options of pilots in the words of the batch system: the account that they are of.
    pilot_native: Mapping[str, Any] = field(default_factory=dict)
    # Jobs with a wall time up to this go by pilot; with `inf` also those that state none.
    short_job_seconds: float = 600.0
    # Fewer of them within a minute go by themselves, unless there are pilots: one is not worth a pilot of its own.
    pilot_from_jobs: int = 4
    # A pilot that is not in the batch system any more and was quiet for so long is given up.
    lease_seconds: float = 60.0
    # A pilot that failed its test keeps its place for so long, so that a bad node is not asked all the time.
    failed_seconds: float = 300.0
