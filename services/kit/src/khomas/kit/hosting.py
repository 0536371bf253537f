"""Starts services behind one server and stops them in the right order."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from khomas.kit.config import ServiceSettings
from khomas.kit.server import Server
from khomas.kit.service import Host, Running, Service

if TYPE_CHECKING:
    from aiohttp import web

log = logging.getLogger(__name__)

_MAX_PAUSE = 30.0


@dataclass(frozen=True, slots=True)
class Place:
    """A service and all that it needs to start."""

    service: Service[Any]
    settings: ServiceSettings
    host: Host
    # Reserved for the HTTP door before the start, so that the service can know its address.
    http_socket: socket.socket


@asynccontextmanager
async def hosted(server: Server, places: Sequence[Place]) -> AsyncIterator[Mapping[str, Running]]:
    """Run services until the block ends: then drain, stop doors and loops, close, in this order."""
    async with AsyncExitStack() as stack:
        running = {}
        for place in places:
            stack.callback(place.http_socket.close)
            started = await place.service.start(place.settings, place.host)
            stack.push_async_callback(started.close)
            started.add_to(server)
            running[place.service.name] = started
        loops = await stack.enter_async_context(_loops())
        for place in places:
            if (door := running[place.service.name].http) is not None:
                await stack.enter_async_context(_door(door, place.http_socket))
        stack.push_async_callback(server.drain)
        await server.start()
        for name, started in running.items():
            for loop_name, loop in started.background.items():
                loops.append(asyncio.create_task(_supervised(f"{name}.{loop_name}", loop)))
        yield running


def reserved_socket(listen: str) -> socket.socket:
    """Bind "host:port" without listening yet; port 0 takes a free one."""
    host, _, port = listen.rpartition(":")
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host.strip("[]"), int(port)))
    except OSError:
        bound.close()
        raise
    return bound


@asynccontextmanager
async def _door(application: "web.Application", bound: socket.socket) -> AsyncIterator[None]:
    from aiohttp import web

    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.SockSite(runner, bound).start()
        yield
    finally:
        await runner.cleanup()


@asynccontextmanager
async def _loops() -> AsyncIterator[list[asyncio.Task[None]]]:
    tasks: list[asyncio.Task[None]] = []
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _supervised(name: str, loop: Callable[[], Awaitable[None]]) -> None:
    """Run a loop; one that raises is an error of ours, but must not stop the service."""
    pause = 1.0
    while True:
        try:
            await loop()
        except Exception:
            log.exception("loop.failed", extra={"loop": name, "again_in_seconds": pause})
            await asyncio.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE)
        else:
            return
