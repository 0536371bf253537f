"""Waking up a loop."""

import asyncio


class Signal:
    """Wakes one waiter; what came before the wait counts too."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        """Wake."""
        self._event.set()

    async def wait(self, seconds: float) -> None:
        """Wait for the signal, or so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            return
        finally:
            self._event.clear()
