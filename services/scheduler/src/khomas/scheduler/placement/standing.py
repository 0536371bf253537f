"""Whether a backend gets new jobs: bans, drains, and what is closed and opened by itself. Rules on values alone."""

from collections import Counter, deque
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import IntEnum

from khomas.api.scheduler.v1.state_pb2 import JobState, Reason
from khomas.scheduler.config import BanSettings
from khomas.scheduler.records import Attempt

# Outcomes that a collapse is seen from.
_RECENT = 50
# Trouble of the place, not of the program.
_PLACE = frozenset(
    {
        Reason.REASON_DATA_STAGE_IN,
        Reason.REASON_DATA_STAGE_OUT,
        Reason.REASON_DATA_CHECKSUM,
        Reason.REASON_DATA_SPACE,
    }
)
# Nobody's fault.
_NEITHER = frozenset({Reason.REASON_INFRA_PREEMPTED, Reason.REASON_INFRA_CREDENTIAL_EXPIRED})


class Status(IntEnum):
    """What was decided about a backend; numbers of `Backend.Status` in the contract."""

    PRODUCTION = 1
    DRAINING = 2
    BANNED = 3


@dataclass(frozen=True, slots=True)
class Standing:
    """A row of the table `backend`; the fields stand in the order of its columns."""

    backend: str
    status: int = Status.PRODUCTION
    reason: str = ""
    # Empty = the service.
    actor: str = ""
    since: datetime | None = None
    until: datetime | None = None
    # Bans by the service in a row; forgotten when it does well.
    bans: int = 0

    @property
    def automatic(self) -> bool:
        """Whether the service banned it by itself."""
        return self.status == Status.BANNED and not self.actor

    def over(self, now: datetime) -> bool:
        """Whether its time has passed."""
        return self.until is not None and self.until <= now

    @property
    def said(self) -> str:
        """Say what it is, as a part of a sentence; empty when it is open."""
        if self.status == Status.PRODUCTION:
            return ""
        what = "draining" if self.status == Status.DRAINING else "banned"
        until = f" until {self.until.isoformat(timespec='seconds')}" if self.until else ""
        who = f" by {self.actor}" if self.actor else " by itself"
        times = f", {self.bans} times in a row" if self.automatic and self.bans > 1 else ""
        return f"{what}{until}{who}{times}: {self.reason}"


@dataclass(slots=True)
class Reputation:
    """How a backend does, as this process has seen it; what is not written down yet is in `news`."""

    # good, bad, waits, wait_ms.
    news: Counter[str] = field(default_factory=Counter)
    recent: deque[bool] = field(default_factory=lambda: deque(maxlen=_RECENT))
    # Submissions that went wrong in a row, and what the last one said.
    refused: int = 0
    refusal: str = ""

    def handed_over(self) -> None:
        """Note that it accepted jobs."""
        self.refused = 0

    def refuses(self, message: str) -> None:
        """Note a submission that went wrong."""
        self.refused += 1
        self.refusal = message

    def started(self, attempt: Attempt) -> None:
        """Note how long an attempt waited there."""
        if attempt.submit_time is None or attempt.start_time is None:
            return
        self.news["waits"] += 1
        self.news["wait_ms"] += max(0, round((attempt.start_time - attempt.submit_time).total_seconds() * 1000))

    def ended(self, good: bool | None) -> None:
        """Note an attempt that the backend brought to its end, or did not; None says nothing about it."""
        if good is None:
            return
        self.news["good" if good else "bad"] += 1
        self.recent.append(good)

    def forget(self) -> None:
        """Begin again, after a ban."""
        self.recent.clear()
        self.refused = 0

    def trouble(self, rules: BanSettings) -> str:
        """Say why it should be banned; empty when it should not."""
        if 0 < rules.refused <= self.refused:
            return f"{self.refused} submissions went wrong in a row, the last one: {self.refusal or 'no answer'}"
        good, sample = sum(self.recent), len(self.recent)
        if sample >= rules.sample and good < rules.min_rate * sample:
            return f"only {good} of the last {sample} jobs were brought to their end"
        return ""


def brought_to_end(attempt: Attempt) -> bool | None:
    """Whether the backend did what it should; None when the attempt says nothing about it."""
    if attempt.state == JobState.JOB_STATE_SUCCEEDED:
        return True
    # What was refused never ran; refusals are counted by themselves.
    if attempt.reason in _NEITHER or attempt.reason == Reason.REASON_INFRA_SUBMIT_REJECTED:
        return None
    if attempt.state == JobState.JOB_STATE_FAILED and (400 <= attempt.reason < 500 or attempt.reason in _PLACE):
        return False
    return None


@dataclass(frozen=True, slots=True)
class Record:
    """What was written down about a backend in the last while."""

    good: int = 0
    bad: int = 0
    waits: int = 0
    wait_ms: int = 0

    @property
    def sample(self) -> int:
        """How many jobs say something about it."""
        return self.good + self.bad

    @property
    def expected_wait(self) -> timedelta | None:
        """How long jobs waited there; None when none has."""
        return timedelta(milliseconds=self.wait_ms / self.waits) if self.waits else None


def judged(standing: Standing, reputation: Reputation, rules: BanSettings, probed: bool, now: datetime) -> Standing:
    """The standing after a look: banned when it does badly, open again when its time has passed.

    With `probed` a backend that was banned by the service comes back by a test job only.
    """
    if standing.status == Status.PRODUCTION:
        if trouble := reputation.trouble(rules):
            return _banned(standing, trouble, rules, now)
        return Standing(standing.backend) if len(reputation.recent) >= rules.sample else standing
    if standing.over(now) and not (standing.automatic and probed):
        return Standing(standing.backend, bans=standing.bans)
    return standing


def after_probe(standing: Standing, good: bool, message: str, rules: BanSettings, now: datetime) -> Standing:
    """The standing of a banned backend after a test job."""
    if good:
        return Standing(standing.backend)
    return _banned(standing, f"a test job failed: {message}", rules, now)


def _banned(standing: Standing, trouble: str, rules: BanSettings, now: datetime) -> Standing:
    bans = standing.bans + 1
    since = standing.since if standing.automatic else now
    return Standing(standing.backend, Status.BANNED, trouble, "", since, now + pause_of(bans, rules), bans)


def pause_of(bans: int, rules: BanSettings) -> timedelta:
    """How long the ban with this number in a row lasts."""
    doubled: timedelta = rules.first_pause * 2 ** min(bans - 1, 20)
    return min(rules.longest_pause, doubled)
