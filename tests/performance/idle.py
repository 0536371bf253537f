"""Memory of the idle suite."""

import asyncio
import tempfile
from pathlib import Path

from tests.e2e.installation import Installation
from tests.performance.figures import Figure


async def measure(seconds: float = 3.0) -> list[Figure]:
    """Start `khomas up` with every service, let it rest, read its resident memory."""
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
    return [Figure("idle suite, all five services in one process", "MB", [int(line.split()[1]) * 1024 / 1e6])]
