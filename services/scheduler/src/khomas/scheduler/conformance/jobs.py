"""What the suite submits."""

import asyncio
import multiprocessing
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from khomas.scheduler.backends.interface import Backend, SubmitItem

Item = TypeVar("Item")
OpenBackend = Callable[[], Backend]
GRACE = timedelta(seconds=0.3)
MIB = 1 << 20


def token() -> str:
    """Make a new token, as the scheduler does: 32 hexadecimal digits."""
    return uuid.uuid4().hex


def job(*command: str, **manifest: Any) -> SubmitItem:
    """Make an item for one command."""
    return SubmitItem(token(), {"command": list(command), "job": "jobs/1", "attempt": 1, **manifest})


def shell(script: str, **manifest: Any) -> SubmitItem:
    """Make an item for a shell script."""
    return job("sh", "-c", script, **manifest)


def chunks(items: Sequence[Item], backend: Backend) -> list[Sequence[Item]]:
    """Cut into pieces that the backend takes."""
    size = backend.capabilities.max_batch
    return [items[start : start + size] for start in range(0, len(items), size)]


def pause(backend: Backend) -> float:
    """Seconds between two looks: shorter than the service's, so that the suite is quick."""
    return min(0.5, backend.capabilities.min_poll_interval.total_seconds())


def kill_while(call: Callable[[], Coroutine[Any, Any, object]], seconds: float) -> None:
    """Let another process do something, and kill it in the middle of it, as a power cut would."""
    process = multiprocessing.get_context("fork").Process(target=lambda: asyncio.run(call()))
    process.start()
    time.sleep(seconds)
    process.kill()
    process.join()
