"""Bounds on rates: a bucket of bytes that fills steadily, and that streams take from."""

import asyncio
import time
from collections.abc import Sequence
from typing import Final

# How much may go at once after a pause, in seconds' worth.
_BURST_SECONDS: Final = 0.5


class Bucket:
    """The bytes that may go now. Who takes more than there is has to wait until the debt is paid."""

    def __init__(self, rate: float, now: float) -> None:
        self._rate = rate
        self._level = rate * _BURST_SECONDS
        self._time = now

    def take(self, size_bytes: int, now: float) -> float:
        """Take bytes and return for how many seconds to wait before they go."""
        self._fill(now)
        self._level -= size_bytes
        return max(0.0, -self._level / self._rate)

    def set_rate(self, rate: float, now: float) -> None:
        """Fill at another rate from now on."""
        self._fill(now)
        self._rate = rate

    def _fill(self, now: float) -> None:
        self._level = min(self._rate * _BURST_SECONDS, self._level + (now - self._time) * self._rate)
        self._time = now


class Throttle:
    """The bounds of one stream."""

    def __init__(self, buckets: Sequence[Bucket] = ()) -> None:
        self._buckets = buckets
        self.seconds = 0.0

    async def __call__(self, size_bytes: int) -> None:
        """Wait until so many bytes may go."""
        if self._buckets:
            now = time.monotonic()
            pause = max(bucket.take(size_bytes, now) for bucket in self._buckets)
            self.seconds += pause
            if pause:
                await asyncio.sleep(pause)
