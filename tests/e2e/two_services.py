"""Catalogue and storage in one process, until its input ends: `python -m tests.e2e.two_services FOLDER`."""

import asyncio
import json
import sys
from pathlib import Path

from khomas.kit.plugins import installed, load
from khomas.kit.testing import serve


async def main(folder: Path) -> None:
    """Serve, say where, and wait."""
    services = [
        load(one) for name, one in sorted(installed("khomas.services").items()) if name in ("catalog", "storage")
    ]
    async with serve(*services, state=folder) as served:
        sys.stdout.write(json.dumps({"endpoint": served.endpoint, "token": served.token()}) + "\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
