"""Rounds of calls to a lone service: items a second, and what of its CPU each takes."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from tests.performance.figures import Figure
from tests.performance.lone import Lone

Call = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Calls:
    """What one round does, and how many items that is."""

    items: int
    calls: Sequence[Call]


async def rates(
    service: Lone,
    name: str,
    unit: str,
    rounds: int,
    once: Callable[[], Awaitable[Calls]],
    *,
    clients: int = 1,
    goal: str = "",
    cpu_goal: str = "",
) -> list[Figure]:
    """Run rounds by some clients at a time; give items a second, and CPU of the server an item."""
    found, cpu = [], []
    for _ in range(rounds):
        round_ = await once()
        used, begin = service.cpu_seconds(), time.perf_counter()
        await _by_clients(clients, round_.calls)
        found.append(round_.items / (time.perf_counter() - begin))
        cpu.append(1e6 * (service.cpu_seconds() - used) / round_.items)
    return [
        Figure(name, f"{unit}/s", found, goal),
        Figure(f"{name}: CPU of the server", "us", cpu, cpu_goal),
    ]


async def delays(service: Lone, name: str, calls: int, call: Call, *, goal: str) -> list[Figure]:
    """Make a call again and again; give its milliseconds, and what of the server's CPU that was."""
    await call()
    used, found = service.cpu_seconds(), []
    for _ in range(calls):
        begin = time.perf_counter()
        await call()
        found.append(1e3 * (time.perf_counter() - begin))
    cpu = 1e3 * (service.cpu_seconds() - used) / calls
    return [Figure(name, "ms", found, goal), Figure(f"{name}: CPU of the server", "ms", [cpu])]


def by(clients: int) -> str:
    """Say how many clients."""
    return "1 client" if clients == 1 else f"{clients} clients"


async def _by_clients(clients: int, calls: Sequence[Call]) -> None:
    left = iter(calls)

    async def client() -> None:
        for call in left:
            await call()

    await asyncio.gather(*[client() for _ in range(clients)])
