"""Write the next revision: `python -m khomas.kit.database khomas.catalog.tables:metadata "Add the owner"`."""

import asyncio
import importlib
import sys
import tempfile
from pathlib import Path

from khomas.kit.database.engine import Database
from khomas.kit.database.migrations import revise


async def _write(tables: str, message: str) -> None:
    module, _, name = tables.partition(":")
    metadata = getattr(importlib.import_module(module), name)
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite+aiosqlite:///{Path(folder) / 'history.db'}"
        database = Database(url, metadata=metadata, migrations=f"{module.rpartition('.')[0]}:migrations")
        try:
            await database.upgrade()
            await revise(database, message)
        finally:
            await database.close()


if __name__ == "__main__":
    asyncio.run(_write(*sys.argv[1:]))
