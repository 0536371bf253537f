"""Keeps credentials alive, and lets jobs go on that waited for one."""

import asyncio
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import update

from khomas.api.scheduler.v1.state_pb2 import Reason
from khomas.kit.credentials import Credential, Keeper, Notice
from khomas.kit.events import NewEvent
from khomas.scheduler import tables
from khomas.scheduler.engine.desk import Desk, now


class CredentialKeeping:
    """Renews, warns, and wakes waiting jobs when a credential has changed."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._wallet = desk.sites.wallet
        self._look = desk.settings.keeper.look.total_seconds()
        self._keeper = Keeper(self._wallet.credentials, desk.settings.keeper, self._announce)
        self._seen: dict[str, tuple[Credential, bool]] = {}

    async def run(self) -> None:
        """Keep them, for ever."""
        while True:
            await self.step()
            await asyncio.sleep(self._look)

    async def step(self) -> None:
        """Look, renew, warn, wake."""
        await self._keeper.step()
        moment = now()
        found = {one.name: self._known(one.name, moment) for one in self._wallet.credentials}
        if found != self._seen:
            await self._wake(moment)
            self._seen = found

    def _known(self, name: str, moment: datetime) -> tuple[Credential, bool]:
        known = self._wallet.credentials.known(name)
        return known, known.usable(moment)

    async def _wake(self, moment: datetime) -> None:
        """Let all jobs be looked at again that wait for a credential: one statement, however many they are."""
        job = tables.job
        # Those that wait for room elsewhere may go to the backend that it opens.
        reasons = (Reason.REASON_WAIT_CREDENTIAL, Reason.REASON_WAIT_RESOURCES)
        waits = job.c.reason.in_(reasons) & job.c.due.is_not(None) & (job.c.due > moment)
        async with self._desk.write() as connection:
            woken = await connection.execute(update(job).where(waits).values(due=moment))
        if woken.rowcount:
            self._desk.due.set()

    async def _announce(self, notices: Sequence[Notice]) -> None:
        used_by = self._desk.sites.by_credential
        events = []
        for notice in notices:
            message = self._wallet.message(notice.name, used_by.get(notice.name, ()))
            message.message = notice.message
            events.append(NewEvent(f"scheduler.credential.{notice.what}", message.name, resource=message))
        async with self._desk.write() as connection:
            await self._desk.changes.events.append(connection, events)
