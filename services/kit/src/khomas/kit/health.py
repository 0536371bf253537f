"""The standard health service, whose watchers do not hold up a drain."""

import asyncio
from collections.abc import Iterable
from typing import Any

from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from khomas.kit.boundary.call import Context


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # the library has no types
    """Answers "" (alive), "readiness" and the name of every service."""

    def __init__(self) -> None:
        self._inner = health.aio.HealthServicer()
        self._watches: set[asyncio.Timeout] = set()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> Any:  # noqa: N802  # gRPC's name
        """Tell the state of a service."""
        return await self._inner.Check(request, context)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:  # noqa: N802
        """Tell the state of a service and its changes."""
        try:
            async with asyncio.timeout(None) as timeout:
                self._watches.add(timeout)
                await self._inner.Watch(request, context)
        except TimeoutError:
            return
        finally:
            self._watches.discard(timeout)

    async def serve(self, names: Iterable[str]) -> None:
        """Say that these services serve."""
        for name in ("", "readiness", *names):
            await self._inner.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def leave(self) -> None:
        """Say that nothing serves any more, for good."""
        await self._inner.enter_graceful_shutdown()

    def end_watches(self) -> None:
        """End the watchers, which have seen that nothing serves."""
        for timeout in tuple(self._watches):
            self._watches.discard(timeout)
            timeout.reschedule(asyncio.get_running_loop().time())
