"""Jobs whose backends are all full: they have left the line, so that others get past, until one has room."""

import heapq
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import update

from khomas.api.scheduler.v1.state_pb2 import Reason
from khomas.scheduler import tables
from khomas.scheduler.engine.desk import Desk, now
from khomas.scheduler.records import Job
from khomas.scheduler.store.bulk import update_many
from khomas.scheduler.store.changes import lock_jobs

# Jobs called at once, of each line.
_MOST = 1000
# Backends that are good for a job, one of which must have room, and its account, because accounts take turns.
_Key = tuple[frozenset[str], str]


class _Place(NamedTuple):
    """A job's place in the line, as it sorts there."""

    order: int
    due: datetime
    uid: str


class _Left(NamedTuple):
    """A job that has left its place. Whoever moves it from `until` has decided about its turn."""

    key: _Key
    place: _Place
    until: datetime


class WaitingRoom:
    """Calls as many as may find room, each to its old place in the line."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._lines: dict[_Key, list[_Place]] = {}
        self._left: dict[str, _Left] = {}

    async def empty(self) -> None:
        """Let everybody back into the line: who left it is known to one process, while it works."""
        self._lines, self._left = {}, {}
        job, moment = tables.job.c, now()
        reasons = (Reason.REASON_WAIT_RESOURCES, Reason.REASON_WAIT_BACKEND)
        waits = job.reason.in_(reasons) & job.due.is_not(None) & (job.due > moment)
        async with self._desk.write() as connection:
            await connection.execute(update(tables.job).where(waits).values(due=moment))

    def enter(self, job: Job, until: datetime, backends: frozenset[str]) -> None:
        """Note a job that leaves the line for so long at most."""
        key, known = (backends, job.share), self._left.get(job.uid)
        if known is not None and known.key == key:
            self._left[job.uid] = known._replace(until=until)
        elif job.due is not None:
            place = _Place(-job.priority, job.due, job.uid)
            self._left[job.uid] = _Left(key, place, until)
            heapq.heappush(self._lines.setdefault(key, []), place)

    async def call(self, room: Mapping[str, int]) -> None:
        """Let those back into the line who may find room now, by backend."""
        called = {
            one.place.uid: one
            for key in list(self._lines)
            for one in self._first(key, min(_MOST, sum(room[name] for name in key[0])))
        }
        if not called:
            return
        async with self._desk.write() as connection:
            rows = [
                {"uid": job.uid, "due": called[job.uid].place.due}
                for job in await lock_jobs(connection, called)
                if job.due == called[job.uid].until
            ]
            await update_many(connection, tables.job, ("uid",), rows)

    def _first(self, key: _Key, number: int) -> Iterator[_Left]:
        line = self._lines[key]
        while line and number > 0:
            place = heapq.heappop(line)
            one = self._left.get(place.uid)
            if one is not None and (one.key, one.place) == (key, place):
                del self._left[place.uid]
                number -= 1
                yield one
        if not line:
            del self._lines[key]
