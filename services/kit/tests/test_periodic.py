"""Housekeeping loops."""

import asyncio
from datetime import timedelta

from khomas.kit.periodic import every


async def test_jobs_run_in_order_again_and_again_until_cancelled() -> None:
    done: list[str] = []
    enough = asyncio.Event()

    async def first() -> None:
        done.append("first")

    async def second() -> None:
        done.append("second")
        if len(done) == 6:
            enough.set()

    loop = asyncio.ensure_future(every(timedelta(milliseconds=1), first, second)())
    await asyncio.wait_for(enough.wait(), 5)
    loop.cancel()
    assert done[:6] == ["first", "second"] * 3
