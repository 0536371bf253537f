"""One job for which something fails that nobody thought of does not hold up the others."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from khomas.kit.errors import DiskFull, Overloaded, UpstreamUnavailable
from khomas.scheduler.store.leadership import LeadershipLost

log = logging.getLogger(__name__)

Item = TypeVar("Item")
# What fails for everybody: trying fewer at once would not help.
EVERYBODYS = (LeadershipLost, UpstreamUnavailable, Overloaded, DiskFull)


async def in_parts(
    write: Callable[[Sequence[Item]], Awaitable[None]], items: Sequence[Item], uid: Callable[[Item], str]
) -> list[Item]:
    """Write all at once; where that fails, halves, and so on. Return those that fail by themselves, which are logged.

    `write` changes nothing when it raises.
    """
    try:
        await write(items)
    except EVERYBODYS:
        raise
    except Exception:
        if len(items) == 1:
            log.exception("job.unwritable", extra={"uid": uid(items[0])})
            return list(items)
        half = len(items) // 2
        left = await in_parts(write, items[:half], uid)
        return left + await in_parts(write, items[half:], uid)
    return []
