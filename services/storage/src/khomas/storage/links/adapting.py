"""How many streams a link may carry: more while that makes it faster, fewer when it fails."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

# A window tells something after so much time and so many files.
WINDOW: Final = timedelta(seconds=5)
_FILES: Final = 4
# A file counts as many bytes besides its own: many small ones are fast, too.
_FILE_BYTES: Final = 1024 * 1024
_BAD: Final = 0.2
_FASTER: Final = 1.05
# How many windows pass before a link that has found its number tries one more.
_PATIENCE: Final = 6


@dataclass(frozen=True, slots=True)
class Pace:
    """How many streams a link may carry now, and what has been measured with them."""

    streams: int
    # By how many it has just grown; below 0: for so many windows it has not.
    step: int
    # What it carried before that, in bytes a second.
    rate_before: float
    window_start: datetime
    window_bytes: int = 0
    window_files: int = 0
    window_errors: int = 0


def begun(streams: int, now: datetime) -> Pace:
    """Return the pace of a link that nothing is known about: it tries more as soon as it can."""
    return Pace(streams, -_PATIENCE, 0.0, now)


def adapted(pace: Pace, now: datetime, *, waiting: bool, most: int) -> Pace:
    """Return the pace from now on; the same one while its window tells nothing yet.

    `waiting`: more is there to be moved than the streams could take. Without that they cannot tell what more would do.
    """
    attempts, elapsed = pace.window_files + pace.window_errors, now - pace.window_start
    if attempts < _FILES or elapsed < WINDOW:
        return pace
    rate = (pace.window_bytes + pace.window_files * _FILE_BYTES) / elapsed.total_seconds()
    fresh = replace(pace, window_start=now, window_bytes=0, window_files=0, window_errors=0)
    if pace.window_errors > attempts * _BAD:
        return replace(fresh, streams=max(1, min(pace.streams, most) // 2), step=-1, rate_before=0.0)
    if pace.streams > most or not waiting:
        return replace(fresh, streams=min(pace.streams, most), step=min(pace.step, -1))
    return _climbed(replace(fresh, rate_before=rate), pace, rate, most)


def _climbed(fresh: Pace, pace: Pace, rate: float, most: int) -> Pace:
    """Return one step up, back down, or none."""
    if pace.step > 0 and rate < pace.rate_before * _FASTER:
        return replace(fresh, streams=max(1, pace.streams - pace.step), step=-1)
    if pace.step > 0 or pace.step <= -_PATIENCE:
        more = min(max(1, pace.streams // 4), most - pace.streams)
        return replace(fresh, streams=pace.streams + more, step=more or -1)
    return replace(fresh, step=pace.step - 1)
