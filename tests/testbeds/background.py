"""An event loop in a thread of its own, for servers of a test bed that are ours."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

_SECONDS = 60.0


class Background:
    """Runs coroutines beside the tests."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run it to its end."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_SECONDS)

    @contextmanager
    def living(self, name: str) -> Iterator[None]:
        """Let the loop run."""
        thread = threading.Thread(target=self._loop.run_forever, name=name)
        thread.start()
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()
