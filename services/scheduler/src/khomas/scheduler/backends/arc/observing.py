"""What jobs of an ARC CE do now.

The status of a job is as old as the last run of the CE's information provider, up to minutes; the list of jobs tells
what A-REX knows now, but takes for running what waits in the batch system. Both together cost two calls for all jobs.
"""

import asyncio
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from khomas.scheduler.backends import received
from khomas.scheduler.backends.arc.answers import CANCELLED, ENDED, HANDED_ON, STATES, code
from khomas.scheduler.backends.arc.client import ArcClient, ArcError, ArcRefusedError
from khomas.scheduler.backends.arc.description import CANCEL
from khomas.scheduler.backends.arc.lookup import Lookup
from khomas.scheduler.backends.interface import Observation, PollResult, Seen, State, Usage
from khomas.scheduler.backends.journal import usage_so_far

# The wrapper's own notes in the folder of the job.
_STARTED, _BEAT, _RECORD = "started", "heartbeat", "exit.json"
_MOVING = frozenset({State.QUEUED, State.RUNNING})


class Observer:
    """Looks at many jobs."""

    def __init__(self, client: ArcClient, lookup: Lookup) -> None:
        self._client = client
        self._lookup = lookup
        # Who runs a job, by id; as long as it runs.
        self._started: dict[str, Mapping[str, Any]] = {}

    async def look(self, ids: Sequence[str], measure: Collection[str] = ()) -> PollResult:
        """An observation for each; those that the CE did not answer for say so."""
        if not ids:
            return PollResult([], True, "")
        wanted = list(dict.fromkeys(ids))
        try:
            told = await self._client.act("status", wanted)
            listed = await self._client.jobs((*HANDED_ON, *ENDED))
            tokens = await self._lookup.names([one for one in wanted if code(told.get(one)) == 200])
        except ArcRefusedError:
            raise  # somebody has to do something about it
        except ArcError:
            return PollResult([Observation("", one, Seen.NOT_ANSWERED) for one in ids], False, "")
        now = {str(entry["id"]): str(entry.get("state", "")) for entry in listed}
        seen = await asyncio.gather(
            *[self._observe(tokens.get(one, ""), one, told.get(one), now.get(one, "")) for one in wanted]
        )
        found = dict(zip(wanted, await self._measured(seen, set(measure)), strict=True))
        complete = all(one.seen != Seen.NOT_ANSWERED for one in seen)
        return PollResult([found[one] for one in ids], complete, "")

    async def record(self, native_id: str) -> Mapping[str, Any] | None:
        """The wrapper's exit record; None when there is none."""
        return await self._json(native_id, _RECORD)

    async def _observe(self, token: str, native_id: str, status: Mapping[str, Any] | None, now: str) -> Observation:
        if code(status) == 404:
            self._started.pop(native_id, None)
            return Observation(token, native_id, Seen.ABSENT)
        if code(status) != 200 or not token:
            return Observation(token, native_id, Seen.NOT_ANSWERED)
        assert status is not None
        before = str(status.get("state", ""))
        # KILLED is only told by the older answer.
        native = now if now and not (now in ENDED and before in ENDED) else before
        state = STATES.get(native, State.UNKNOWN)
        seen = Observation(token, native_id, Seen.PRESENT, state, native)
        try:
            if state.final:
                return await self._ended(seen)
            return await self._going(seen, before) if state in _MOVING else seen
        except ArcError:
            return Observation(token, native_id, Seen.NOT_ANSWERED)

    async def _ended(self, seen: Observation) -> Observation:
        """The wrapper's record decides; without one it was either killed or never came to its end."""
        self._started.pop(seen.native_id, None)
        told = await self.record(seen.native_id)
        if told is not None:
            record = received.record(told)
            return replace(
                seen,
                state=State[record["state"]],
                node=record.get("host", ""),
                start_time=received.moment(record.get("start_time")),
                record=record,
            )
        why = await self._client.diagnosis(seen.native_id, "failed")
        asked = await self._client.size(seen.native_id, CANCEL) is not None
        if asked or seen.state == State.CANCELLED or CANCELLED in why:
            return replace(seen, state=State.CANCELLED, native_state="KILLED")
        # FINISHED without a record is no success: the wrapper did not run, or its folder is lost.
        native = " ".join(f"{seen.native_state} {why or 'without an exit record'}".split())
        return replace(seen, state=State.FAILED, native_state=native[:500])

    async def _going(self, seen: Observation, before: str) -> Observation:
        """Tell what runs from what waits in the batch system: by the wrapper's own note, read once."""
        if seen.native_state not in HANDED_ON and before not in HANDED_ON:
            return seen
        started = self._started.get(seen.native_id)
        if started is None and before != "QUEUING":
            started = await self._json(seen.native_id, _STARTED)
        if started is not None:
            self._started[seen.native_id] = started
            start = received.moment(started.get("time"))
            return replace(seen, state=State.RUNNING, node=str(started.get("host", "")), start_time=start)
        # Where nodes have disks of their own the note comes home with the job: then the CE's word is all there is.
        runs = STATES.get(before) == State.RUNNING
        return replace(seen, state=State.RUNNING if runs else State.QUEUED, native_state=before)

    async def _measured(self, seen: Sequence[Observation], measure: set[str]) -> list[Observation]:
        """Say of some that run what they have used so far."""
        ids = [one.native_id for one in seen if one.native_id in measure]
        started = {one: self._started[one] for one in ids if one in self._started}
        used = dict(zip(started, await asyncio.gather(*[self._used(*one) for one in started.items()]), strict=True))
        return [replace(one, usage=used.get(one.native_id)) for one in seen]

    async def _used(self, native_id: str, started: Mapping[str, Any]) -> Usage | None:
        try:
            return usage_so_far(started, await self._json(native_id, _BEAT))
        except ArcError:
            return None  # says nothing about the job

    async def _json(self, native_id: str, name: str) -> Mapping[str, Any] | None:
        content = await self._client.read(native_id, name)
        try:
            found = json.loads(content) if content else None
        except ValueError:
            return None  # it is being written
        return found if isinstance(found, Mapping) else None
