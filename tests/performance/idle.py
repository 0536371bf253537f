"""Memory at rest: of the whole suite in one process, and of each service alone."""

import asyncio
import tempfile
from pathlib import Path

from khomas.kit.testing.postgresql import postgresql_server
from tests.e2e.installation import Installation
from tests.performance.figures import Figure
from tests.performance.lone import lone

_AREAS = ("catalog", "storage", "scheduler", "bookkeeping", "archive")
_MIB = 2**20


async def measure(seconds: float = 3.0) -> list[Figure]:
    """Start, let it rest, read the resident memory."""
    return [await _suite(seconds), *await _alone(seconds)]


async def _suite(seconds: float) -> Figure:
    with tempfile.TemporaryDirectory(prefix="khomas-") as name:
        installation = Installation(Path(name))
        await asyncio.to_thread(installation.start)
        try:
            await asyncio.sleep(seconds)
            assert installation.process is not None
            status = await asyncio.to_thread(Path(f"/proc/{installation.process.pid}/status").read_text)
        finally:
            await asyncio.to_thread(installation.stop)
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return Figure("idle suite, all five services in one process", "MiB", [int(line.split()[1]) * 1024 / _MIB])


async def _alone(seconds: float) -> list[Figure]:
    figures = []
    with postgresql_server() as server:
        for area in _AREAS:
            async with lone(area, await server.create_database()) as service:
                await asyncio.sleep(seconds)
                memory = service.resident_bytes() / _MIB
            figures.append(Figure(f"idle {area} alone, TLS, PostgreSQL", "MiB", [memory], "<= 90"))
    return figures
