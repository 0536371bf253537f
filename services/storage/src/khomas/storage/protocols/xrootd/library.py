"""The library of XRootD as coroutines. Its callbacks come on threads of its own."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from math import ceil
from typing import Any, Final

from XRootD import client
from XRootD.client.responses import XRootDStatus

from khomas.storage.protocols.interface import Problem, ProtocolFault
from khomas.storage.protocols.xrootd.answers import fault_of

_SETTINGS: Final = {
    # It says by itself when a time is over, to the second.
    "TimeoutResolution": 1,
    # Nobody there is an answer: when to try again is not the library's to decide.
    "ConnectionRetry": 1,
    "ConnectionWindow": 20,
    "StreamErrorWindow": 0,
    # Parts of one answer are handed over in their order.
    "WorkerThreads": 1,
}
# Ours comes after the library's own time.
_GRACE: Final = 10.0

for _name, _value in _SETTINGS.items():
    client.EnvPutInt(_name, _value)

Start = Callable[..., Any]


async def call(start: Start, *arguments: Any, seconds: float) -> Any:
    """Begin a request and return what the server answers; raise ProtocolFault."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[tuple[Any, Any]] = loop.create_future()

    def settle(status: Any, response: Any) -> None:
        if not future.done():
            future.set_result((status, response))

    # The library reads what it writes from where it lies: that has to live until it is done, whoever still waits.
    def answered(status: Any, response: Any, _hosts: Any, _kept: object = arguments) -> None:
        # The loop may have ended meanwhile.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, status, response)

    begun = start(*arguments, timeout=ceil(seconds), callback=answered)
    if not begun.ok:
        raise fault_of(begun)
    try:
        async with asyncio.timeout(ceil(seconds) + _GRACE):
            status, response = await future
    except TimeoutError as error:
        raise ProtocolFault(Problem.PASSING, f"no answer in {seconds:g} s") from error
    if not status.ok:
        raise fault_of(status)
    return response


async def parts(start: Start, *arguments: Any, seconds: float, idle_seconds: float) -> AsyncGenerator[Any, None]:
    """Begin a request with a long answer and yield its parts as they come."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[Any, Any]] = asyncio.Queue()

    def answered(status: Any, response: Any, _hosts: Any) -> None:
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(queue.put_nowait, (status, response))

    begun = start(*arguments, timeout=ceil(seconds), callback=answered)
    if not begun.ok:
        raise fault_of(begun)
    going_on = True
    while going_on:
        try:
            async with asyncio.timeout(idle_seconds):
                status, response = await queue.get()
        except TimeoutError as error:
            raise ProtocolFault(Problem.PASSING, f"nothing more of the answer in {idle_seconds:g} s") from error
        if not status.ok:
            raise fault_of(status)
        going_on = status.code == XRootDStatus.suContinue
        if response is not None:
            yield response
