"""How long a stream may last: until its token expires, or until the server drains while it is idle."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import timedelta
from typing import Any

from khomas.kit.boundary.call import Call, Context
from khomas.kit.errors import TokenExpired, UpstreamUnavailable


class Stream:
    """A stream of answers while it runs."""

    def __init__(self, call: Call, timeout: asyncio.Timeout) -> None:
        self._call = call
        self._timeout = timeout
        self._sent_at = time.monotonic()
        self._draining = False

    async def send(self, answer: Any, context: Context) -> None:
        """Send what a handler yields; one that writes by itself is only awaited."""
        if not isinstance(answer, AsyncIterator):
            answer = await answer
        if answer is None:
            return
        async with aclosing(answer) as messages:
            async for message in messages:
                await context.write(message)
                self._sent_at = time.monotonic()

    def end_if_idle(self, idle: timedelta) -> None:
        """End the stream if it has sent nothing for so long."""
        if not self._draining and time.monotonic() - self._sent_at >= idle.total_seconds():
            self._draining = True
            self._timeout.reschedule(asyncio.get_running_loop().time())

    def raise_if_draining(self) -> None:
        """Tell the caller to go on elsewhere, if that is why the stream ended."""
        if self._draining:
            service = self._call.method.split("/")[1]
            raise UpstreamUnavailable("The server stops; go on from your last cursor.", service=service) from None


class Watches:
    """The streams of answers that run."""

    def __init__(self) -> None:
        self._streams: set[Stream] = set()

    @asynccontextmanager
    async def stream(self, call: Call) -> AsyncIterator[Stream]:
        """Bound a stream."""
        async with until_expiry(call) as timeout:
            stream = Stream(call, timeout)
            self._streams.add(stream)
            try:
                yield stream
            except asyncio.CancelledError:
                stream.raise_if_draining()
                raise
            finally:
                self._streams.discard(stream)

    def end_idle(self, idle: timedelta) -> None:
        """End the streams that have sent nothing for so long."""
        for stream in tuple(self._streams):
            stream.end_if_idle(idle)


@asynccontextmanager
async def until_expiry(call: Call) -> AsyncIterator[asyncio.Timeout]:
    """End a stream when the token that opened it expires."""
    expires_at = call.principal.expires_at if call.principal is not None else None
    remaining = expires_at.timestamp() - time.time() if expires_at is not None else None
    try:
        async with asyncio.timeout(remaining) as timeout:
            yield timeout
    except TimeoutError:
        if expires_at is not None and timeout.expired():
            raise TokenExpired(expired_at=expires_at) from None
        raise
