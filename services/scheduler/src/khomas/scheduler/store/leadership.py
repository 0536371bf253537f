"""Only one process at a time works on the jobs of a database."""

import os
import socket
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.kit.database import Database
from khomas.scheduler import tables

_NAME = "engine"
_table = tables.lease


class LeadershipLost(Exception):
    """Another process works on the jobs now; what this one was about to write is void."""


class Leadership:
    """The right to work on jobs, good for a while and renewed by every write."""

    def __init__(self, database: Database, duration: timedelta) -> None:
        self._database = database
        self._duration = duration
        self._owner = f"{socket.gethostname()} {os.getpid()} {_started(os.getpid())} {uuid4().hex}"
        self._epoch = -1

    async def acquire(self) -> bool:
        """Take it when nobody has it; tell whether it is ours."""
        now = datetime.now(UTC)
        async with self._database.write() as connection:
            row = (
                await connection.execute(select(_table).where(_table.c.name == _NAME).with_for_update())
            ).one_or_none()
            if row is not None and row.expire_time > now and _alive(row.owner) and row.owner != self._owner:
                return False
            self._epoch = row.epoch + 1 if row is not None else 1
            values = {"owner": self._owner, "epoch": self._epoch, "expire_time": now + self._duration}
            if row is not None:
                await connection.execute(update(_table).values(values).where(_table.c.name == _NAME))
                return True
            try:
                await connection.execute(insert(_table).values(name=_NAME, **values))
            except IntegrityError:
                return False  # somebody was faster
        return True

    async def fence(self, connection: AsyncConnection) -> None:
        """Prolong it in this transaction. Raises `LeadershipLost`."""
        renewed = await connection.execute(
            update(_table)
            .values(expire_time=datetime.now(UTC) + self._duration)
            .where(_table.c.name == _NAME, _table.c.owner == self._owner, _table.c.epoch == self._epoch)
        )
        if renewed.rowcount != 1:
            raise LeadershipLost

    async def renew(self) -> None:
        """Prolong it. Raises `LeadershipLost`."""
        async with self._database.write() as connection:
            await self.fence(connection)

    async def give_up(self) -> None:
        """Let the next one take it at once."""
        async with self._database.write() as connection:
            await connection.execute(
                update(_table)
                .values(expire_time=datetime.now(UTC))
                .where(_table.c.owner == self._owner, _table.c.epoch == self._epoch)
            )


def _alive(owner: str) -> bool:
    """Whether the owner may still be there: a dead process of this machine is not."""
    host, pid, started, _ = owner.split(" ")
    return host != socket.gethostname() or _started(int(pid)) == started


def _started(pid: int) -> str:
    """Start of a process in clock ticks since boot, empty when there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:  # noqa: PTH123  a line of /proc
            return stream.read().rpartition(b")")[2].split()[19].decode()
    except OSError:
        return ""
