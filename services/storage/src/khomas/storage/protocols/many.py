"""Bulk calls to servers that know single ones only: a bounded number at once, each with its own time."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from khomas.storage.protocols.interface import Problem, ProtocolFault

Item = TypeVar("Item")
Result = TypeVar("Result")


async def each(
    action: Callable[[Item], Awaitable[Result]], items: Sequence[Item], *, at_once: int, seconds: float
) -> list[Result | ProtocolFault]:
    """Return what `action` gives for every item, in order; a fault or a lack of time concerns its item alone."""
    results: list[Result | ProtocolFault] = [ProtocolFault(Problem.PASSING, "not done")] * len(items)
    numbers = iter(range(len(items)))

    async def worker() -> None:
        # All workers take from one iterator: whoever is free does the next one.
        for number in numbers:
            results[number] = await within(action(items[number]), seconds)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(at_once, len(items))):
            group.create_task(worker())
    return results


async def within(action: Awaitable[Result], seconds: float) -> Result | ProtocolFault:
    """Return what one call gives, or its fault."""
    try:
        async with asyncio.timeout(seconds):
            return await action
    except ProtocolFault as fault:
        return fault
    except TimeoutError:
        return ProtocolFault(Problem.PASSING, f"no answer in {seconds:g} s")
