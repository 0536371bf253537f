"""Housekeeping that a service repeats while it runs."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta


def every(pause: timedelta, *jobs: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[None]]:
    """Make a background loop that does the jobs one after the other, then pauses."""

    async def loop() -> None:
        while True:
            # Replicas of a service that start together shall not do it together.
            await asyncio.sleep(pause.total_seconds() * random.uniform(0.5, 1))  # noqa: S311
            for job in jobs:
                await job()

    return loop
