"""A comparison of a storage element with the catalogue, every byte read: time for each file, and memory."""

import tempfile
import time
from pathlib import Path

from tests.e2e import planted
from tests.performance.figures import Figure

_MIB = 2**20


async def measure(files: int = 100_000) -> list[Figure]:
    """Plant, compare, check that exactly what was planted was found, repair, compare again."""
    with tempfile.TemporaryDirectory(prefix="khomas-") as name:
        folder = Path(name)
        async with planted.process(folder) as running:
            wrong = (await planted.plant(running, folder, files)).wrong
            before = running.peak_bytes()
            seconds = -time.monotonic()
            run = await planted.compared(running)
            seconds += time.monotonic()
            found = {one.path for one in await planted.incidents(running)}
            if found != wrong.keys():
                raise RuntimeError(
                    f"{len(found ^ wrong.keys())} of {len(wrong)} files were not found, or found wrongly"
                )
            await planted.repaired(running)
            again = await planted.compared(running)
            if again.findings.ListFields():
                raise RuntimeError(f"not all was repaired: {again.findings}")
            peak = running.peak_bytes()
    what = f"compare {files} files with the catalogue, reading every byte"
    return [
        Figure(what, "files/s", [run.found_files / seconds]),
        Figure(f"{what}: memory of catalogue and storage together", "MiB", [peak / _MIB], "<= 200"),
        Figure(f"memory before, with {files} files brought in", "MiB", [before / _MIB]),
    ]
