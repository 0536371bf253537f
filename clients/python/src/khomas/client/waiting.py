"""Wait for what a service does in the background."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from khomas.client.errors import TIMED_OUT, KhomasError

T = TypeVar("T")
_PAUSE = 0.3


async def until(
    read: Callable[[], Awaitable[T]],
    done: Callable[[T], bool],
    *,
    timeout: float | None = None,
    on_look: Callable[[T], None] | None = None,
) -> T:
    """Read something until it is done. Raises KhomasError with exit code 124 at the time-out."""
    end = None if timeout is None else time.monotonic() + timeout
    while True:
        found = await read()
        if on_look is not None:
            on_look(found)
        if done(found):
            return found
        if end is not None and time.monotonic() > end:
            raise KhomasError(f"not done after {timeout:g} s", "TIMEOUT", exit_code=TIMED_OUT)
        await asyncio.sleep(_PAUSE)
