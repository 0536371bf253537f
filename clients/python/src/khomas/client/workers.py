"""Threads that move files, some at a time, and stop at once when the caller wants no more of it."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

from khomas.client.bytes_moving import Progress
from khomas.client.errors import KhomasError
from khomas.client.kept_connections import Connections
from khomas.client.partial import LocalFault

T = TypeVar("T")
R = TypeVar("R")
_PARALLEL = 8


class Workers:
    """A few threads and the connections that they keep."""

    def __init__(self, progress: Progress) -> None:
        self.connections = Connections()
        self._pool = ThreadPoolExecutor(_PARALLEL, thread_name_prefix="khomas-file")
        self._progress = progress
        self._lock = threading.Lock()

    def progress(self, length: int) -> None:
        """Count bytes, of one thread at a time."""
        with self._lock:
            self._progress(length)

    async def each(self, work: Callable[[T], R], items: Sequence[T]) -> list[R | KhomasError]:
        """Do blocking work for each item; what fails does not keep the others from going on.

        Only a fault of this machine's disk stops the others, for it is theirs, too.
        """

        def one(item: T) -> R | KhomasError:
            try:
                self.connections.check()
                return work(item)
            except LocalFault as error:
                self.connections.stop()
                return error
            except KhomasError as error:
                return error

        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(self._pool, one, item) for item in items))

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.connections.stop()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.connections.close()


def first_failure(results: Sequence[object]) -> KhomasError | None:
    """Return what went wrong first; that others were stopped because of it is no cause."""
    failures = [result for result in results if isinstance(result, KhomasError)]
    causes = [one for one in failures if one.reason != "CANCELLED"]
    return next(iter(causes or failures), None)
