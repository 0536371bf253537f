"""Backend "ssh": a machine behind ssh without a batch system. One connection, detached jobs, one look for all."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from khomas.scheduler.backends.interface import BackendPlugin, ComputeResource, State, Submitted, Usage
from khomas.scheduler.backends.spool.backend import SpooledBackend
from khomas.scheduler.backends.spool.dialect import Answer, Needs, Refusal, Status, Submission
from khomas.scheduler.backends.spool.settings import SpoolSettings
from khomas.scheduler.backends.spool.slots import in_slot

# A session of its own, so that the job outlives the connection.
_DETACH = 'setsid --fork sh "$1" < /dev/null > /dev/null 2>&1 && echo "started $2"'
_REFUSED = r"(?i)cannot fork|resource temporarily unavailable|not found"
_MACHINE = "nproc; awk '/MemTotal/ {print $2}' /proc/meminfo; "


@dataclass(frozen=True, slots=True, kw_only=True)
class SshSettings(SpoolSettings):
    """A machine behind ssh; `ssh` is its address."""

    # Jobs that run at the same time.
    slots: int = 4


class ProcessDialect:
    """Processes of a host in a few slots; the native id is the token."""

    kind = "ssh"
    native_options: frozenset[str] = frozenset()
    can_hold = False
    by_process = True
    avoids_nodes = False
    margin_seconds = 0.0

    def __init__(self, settings: SshSettings) -> None:
        self._settings = settings
        self._waiting = re.compile(re.escape(str(settings.spool)) + r"/batches/([A-Za-z0-9-]+)/script")

    def submission(self, needs: Needs, runs: str) -> Submission:
        """Start a detached process that waits for its slot."""
        command = ["sh", "-c", _DETACH, "sh", "@SCRIPT@", "@TOKEN@"]
        script = in_slot(runs, self._settings.slots)
        return Submission(script, command, None, native=r"(?m)^started (\S+)$", refused=_REFUSED)

    def refusal(self, answer: Answer) -> Refusal:
        """No process could be started."""
        return Refusal(Submitted.REJECTED, " ".join(answer.stderr.split()) or "no process could be started")

    def element(self, native: str, index: int) -> str:
        """There are no arrays."""
        return native

    def whole(self, native_id: str) -> tuple[str, int]:
        """There are no arrays."""
        return native_id, 0

    def status(self, natives: Sequence[str]) -> list[list[str]]:
        """The processes of this user that wait; those that run are known by their folders."""
        return [["sh", "-c", f'pgrep -a -u "$(id -u)" -f {self._settings.spool}/ || true']]

    def statuses(self, answers: Sequence[Answer]) -> Mapping[str, Status]:
        """What waits for a slot."""
        return {token: Status(State.QUEUED, "waiting") for token in self._waiting.findall(answers[0].text())}

    def accounting(self, native_ids: Sequence[str]) -> list[list[str]]:
        """There is none: the wrapper's record is all."""
        return []

    def accounts(self, answers: Sequence[Answer]) -> Mapping[str, tuple[Status, Usage]]:
        """There are none."""
        return {}

    def search(self, batches: Sequence[str]) -> list[list[str]]:
        """A waiting process tells of its submission."""
        return self.status(batches)

    def found(self, answers: Sequence[Answer]) -> Mapping[str, str]:
        """The native id is the token."""
        return {token: token for token in self._waiting.findall(answers[0].text())}

    def cancel(self, native_ids: Sequence[str], *, running: bool) -> list[list[str]]:
        """The keeper has told the wrappers; a waiting process finds its place taken and ends."""
        return []

    def hold(self, native_ids: Sequence[str], on: bool) -> list[list[str]]:
        """It cannot."""
        return []

    def resources(self) -> list[list[str]]:
        """Cores and memory of the host, and the processes that wait or run."""
        wait = f'pgrep -c -u "$(id -u)" -f {self._settings.spool}/batches/ || true'
        run = f'; pgrep -c -u "$(id -u)" -f "{self._settings.spool}/bin/.* element " || true'
        return [["sh", "-c", _MACHINE + wait + run]]

    def queues(self, answers: Sequence[Answer]) -> list[ComputeResource]:
        """One queue of one-core slots."""
        cores, memory, waiting, running = (int(line) for line in answers[0].text().split())
        slots = self._settings.slots
        # The shell that counts sees itself.
        running = min(slots, max(0, running - 1))
        return [
            ComputeResource(
                queue="",
                cpu_milli=1000 * slots,
                max_cpu_milli=1000,
                free_cpu_milli=1000 * (slots - running),
                max_memory_bytes=memory * 1024,
                running_jobs=running,
                queued_jobs=max(0, waiting - 1),
                message=f"{cores} cores" if cores < slots else "",
            )
        ]


def open_ssh(settings: SshSettings) -> SpooledBackend:
    """Open a host. Raises `ValueError` without an address."""
    if not settings.ssh:
        raise ValueError("the backend ssh needs an address: ssh = user@host:port")
    return SpooledBackend(settings.host(), settings, ProcessDialect(settings))


plugin = BackendPlugin(
    name="ssh",
    settings=SshSettings,
    open=open_ssh,
    credential_options={"key": "ssh_key"},
)
