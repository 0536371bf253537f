"""Small files by content: bytes in the state folder, names in the database."""

import hashlib
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import aiofiles
import aiofiles.os
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.scheduler.v1.scheduler_service_pb2 import SandboxContent
from khomas.kit.database import in_values, insert_new
from khomas.scheduler import tables
from khomas.scheduler.errors import SandboxMismatch


class Sandboxes:
    """The folder of uploaded contents."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, sha256: str) -> Path:
        """Where a content lies."""
        return (self._folder / sha256[:2] / sha256).absolute()

    async def missing(self, connection: AsyncConnection, contents: Collection[str]) -> list[str]:
        """Which of the contents are not stored, in the order given."""
        query = select(tables.sandbox.c.sha256).where(in_values(tables.sandbox.c.sha256, contents))
        stored = set((await connection.execute(query)).scalars())
        return [sha256 for sha256 in dict.fromkeys(contents) if sha256 not in stored]

    async def write(self, sandboxes: Iterable[SandboxContent]) -> None:
        """Write the files. Raises `SandboxMismatch` before anything is written."""
        contents = list(sandboxes)
        for one in contents:
            if hashlib.sha256(one.content).hexdigest() != one.sha256:
                raise SandboxMismatch(sha256=one.sha256)
        for one in contents:
            await self._write(self.path(one.sha256), one.content)

    async def note(self, connection: AsyncConnection, sandboxes: Sequence[SandboxContent]) -> int:
        """Make written files known; how many were new."""
        now = datetime.now(UTC)
        unique = {one.sha256: len(one.content) for one in sandboxes}
        rows = [{"sha256": sha256, "size_bytes": size, "create_time": now} for sha256, size in sorted(unique.items())]
        return len(await insert_new(connection, tables.sandbox, rows, tables.sandbox.c.sha256))

    async def _write(self, path: Path, content: bytes) -> None:
        if await aiofiles.os.path.exists(path):
            return
        await aiofiles.os.makedirs(path.parent, mode=0o700, exist_ok=True)
        hidden = path.with_name(f".{path.name}.{uuid4().hex}")
        async with aiofiles.open(hidden, "wb") as stream:
            await stream.write(content)
        await aiofiles.os.replace(hidden, path)
