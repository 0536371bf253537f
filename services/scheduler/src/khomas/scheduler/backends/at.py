"""Backend "at": the oldest batch system, and the only one that some machines have. One core a job."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from khomas.scheduler.backends.interface import BackendPlugin, ComputeResource, State, Submitted, Usage
from khomas.scheduler.backends.spool.backend import SpooledBackend
from khomas.scheduler.backends.spool.dialect import Answer, Needs, Refusal, Status, Submission
from khomas.scheduler.backends.spool.settings import SpoolSettings
from khomas.scheduler.backends.spool.slots import in_slot

# at keeps the environment of whoever calls it: it shall find nothing there.
_CLEAN = ("env", "-i", "PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8", "LC_ALL=C.UTF-8")
# Everything but its usual words and our own about a deadline.
_REFUSED = r"(?im)^(?!warning: commands will be|job \d+ at|no answer within).*\S"
# atq fails when a job leaves the queue while atq reads it.
_LIST = 'for n in 1 2 3 4 5; do jobs=$("$1") && break; done || exit; '
_WAITING = _LIST + '[ -z "$jobs" ] || echo "$jobs"'
# at cannot name its jobs, so they are found by a line of their scripts.
_SEARCH = _LIST + (
    'for id in $(echo "$jobs" | cut -f1); do "$2" -c "$id" | sed -n "s/^# khomas \\(.*\\)/$id \\1/p"; done'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AtSettings(SpoolSettings):
    """at and atd on this machine, or on a host behind ssh."""

    # Jobs that run at the same time.
    slots: int = 4


class AtDialect:
    """at, atq, atrm."""

    kind = "at"
    native_options: frozenset[str] = frozenset()
    can_hold = False
    by_process = True
    avoids_nodes = False
    margin_seconds = 0.0

    def __init__(self, settings: AtSettings) -> None:
        self._settings = settings

    def submission(self, needs: Needs, runs: str) -> Submission:
        """One job a command: at knows no arrays."""
        at = [*_CLEAN, self._settings.tool("at"), *(["-q", needs.queue] if needs.queue else [])]
        script = in_slot(runs, self._settings.slots)
        return Submission(script, [*at, "-f", "@SCRIPT@", "now"], None, native=r"(?m)^job (\d+) at", refused=_REFUSED)

    def refusal(self, answer: Answer) -> Refusal:
        """Every complaint of at is a refusal."""
        return Refusal(Submitted.REJECTED, " ".join(answer.stderr.split()) or "at took no job and said nothing")

    def element(self, native: str, index: int) -> str:
        """There are no arrays."""
        return native

    def whole(self, native_id: str) -> tuple[str, int]:
        """There are no arrays."""
        return native_id, 0

    def status(self, natives: Sequence[str]) -> list[list[str]]:
        """What waits, and what atd has started."""
        return [["sh", "-c", _WAITING, "sh", self._settings.tool("atq")]]

    def statuses(self, answers: Sequence[Answer]) -> Mapping[str, Status]:
        """A job that atd has started waits for a slot until its wrapper runs."""
        rows = (line.split("\t") for line in answers[0].text().splitlines())
        queues = {row[0]: row[1].split()[-2] for row in rows}
        return {
            native: Status(State.QUEUED, "started" if queue == "=" else "waiting", queue=queue.strip("="))
            for native, queue in queues.items()
        }

    def accounting(self, native_ids: Sequence[str]) -> list[list[str]]:
        """There is none: the wrapper's record is all."""
        return []

    def accounts(self, answers: Sequence[Answer]) -> Mapping[str, tuple[Status, Usage]]:
        """There are none."""
        return {}

    def search(self, batches: Sequence[str]) -> list[list[str]]:
        """Read the scripts of all jobs."""
        return [["sh", "-c", _SEARCH, "sh", self._settings.tool("atq"), self._settings.tool("at")]]

    def found(self, answers: Sequence[Answer]) -> Mapping[str, str]:
        """Native ids by tokens."""
        rows = (line.split() for line in answers[0].text().splitlines())
        return {name: native for native, name in rows}

    def cancel(self, native_ids: Sequence[str], *, running: bool) -> list[list[str]]:
        """Take away what waits; the wrappers of the others get their signal from the keeper."""
        known = [one for one in native_ids if re.fullmatch(r"\d+", one)]
        return [[self._settings.tool("atrm"), *known]] if known else []

    def hold(self, native_ids: Sequence[str], on: bool) -> list[list[str]]:
        """It cannot."""
        return []

    def resources(self) -> list[list[str]]:
        """What waits and runs."""
        return [["sh", "-c", _WAITING, "sh", self._settings.tool("atq")]]

    def queues(self, answers: Sequence[Answer]) -> list[ComputeResource]:
        """One queue of one-core slots."""
        started = sum(" = " in line for line in answers[0].text().splitlines())
        total = len(answers[0].text().splitlines())
        slots = self._settings.slots
        running = min(slots, started)
        return [
            ComputeResource(
                queue="",
                cpu_milli=1000 * slots,
                max_cpu_milli=1000,
                free_cpu_milli=1000 * (slots - running),
                running_jobs=running,
                queued_jobs=total - running,
            )
        ]


def open_at(settings: AtSettings) -> SpooledBackend:
    """Open at."""
    return SpooledBackend(settings.host(), settings, AtDialect(settings))


plugin = BackendPlugin(name="at", settings=AtSettings, open=open_at)
