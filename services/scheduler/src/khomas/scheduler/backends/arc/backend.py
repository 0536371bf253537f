"""Backend "arc": an ARC CE over its REST interface, in bulk."""

import asyncio
import contextlib
import fcntl
import json
import os
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from khomas.scheduler.backends.arc.answers import ENDED, STATES, activity, code, resources, usage_of
from khomas.scheduler.backends.arc.client import ArcClient, ArcError, ArcFullError, ArcRefusedError, ArcUnreachableError
from khomas.scheduler.backends.arc.description import CANCEL, OPTIONS, SCRIPT, descriptions, refusal, script
from khomas.scheduler.backends.arc.lookup import Lookup
from khomas.scheduler.backends.arc.observing import Observer
from khomas.scheduler.backends.arc.settings import ArcSettings
from khomas.scheduler.backends.interface import (
    Capabilities,
    Chunk,
    ComputeResource,
    NotSupportedError,
    Outcome,
    PollResult,
    RenderedScript,
    SubmitItem,
    SubmitOutcome,
    Submitted,
    Usage,
)
from khomas.scheduler.backends.journal import usage_of as recorded_usage
from khomas.scheduler.backends.queues import with_defaults
from khomas.scheduler.backends.script import without_secrets

_STREAMS = ("stdout", "stderr")
_CHUNK_BYTES = 1 << 20
_THROTTLED = timedelta(minutes=1)
_CLEAN_SECONDS = 20.0


class ArcBackend:
    """Jobs of one CE. The CE is the truth; names of jobs and where they run are kept to ask less."""

    def __init__(self, settings: ArcSettings) -> None:
        self._settings = settings
        self._client = ArcClient(settings)
        self._lookup = Lookup(self._client)
        self._observer = Observer(self._client, self._lookup)
        self.capabilities = Capabilities(
            kind="arc",
            # The CE takes tens of milliseconds for each; more would come near the deadline of a call.
            max_batch=500,
            min_poll_interval=settings.poll_interval,
            peek=True,
            live_usage=settings.shared_session,
            native_options=OPTIONS,
            wall_margin=timedelta(seconds=settings.extra_wall_time_s),
        )

    def render(self, items: Sequence[SubmitItem]) -> list[RenderedScript]:
        """Say what submit would hand over, as the script that runs on the node."""
        return [
            RenderedScript(item.token, f"{item.token}.sh", script(without_secrets(self._manifest(item))).decode())
            for item in items
        ]

    async def aclose(self) -> None:
        """Close all connections; jobs go on."""
        await self._client.aclose()

    # ------------------------------------------------------------------------------------------------- submit

    async def submit(self, items: Sequence[SubmitItem]) -> list[SubmitOutcome]:
        """Make all jobs with one call, then give each its script, without which it does not begin.

        An answer that is lost on the way leaves jobs that never run: those that are found the next time get their
        script then.
        """
        outcomes = {item.token: _rejected(item, why) for item in items if (why := refusal(item))}
        good = {item.token: item for item in items if item.token not in outcomes}
        if good:
            outcomes |= await self._hand_over(good)
        return [outcomes[item.token] for item in items]

    async def _hand_over(self, items: Mapping[str, SubmitItem]) -> dict[str, SubmitOutcome]:
        async with self._alone():
            found = await self._lookup.find(list(items))
            outcomes = {
                token: SubmitOutcome(token, Submitted.ACCEPTED, one.native_id)
                for token, one in found.items()
                if one.released
            }
            waiting = {token: one.native_id for token, one in found.items() if not (one.released or one.ended)}
            new = [item for token, item in items.items() if token not in outcomes and token not in waiting]
            if new:
                made = await self._create(new)
                waiting |= {one.token: one.native_id for one in made if one.kind == Submitted.ACCEPTED}
                outcomes |= {one.token: one for one in made if one.kind != Submitted.ACCEPTED}
        for token, native_id in waiting.items():
            self._lookup.note(native_id, token)
        released = [self._release(items[token], native_id) for token, native_id in waiting.items()]
        return outcomes | {one.token: one for one in await asyncio.gather(*released)}

    async def _create(self, items: Sequence[SubmitItem]) -> list[SubmitOutcome]:
        """Make jobs; the CE answers in the same order."""
        try:
            answers = await self._client.create(descriptions(items, self._settings))
        except (ArcRefusedError, ArcUnreachableError):
            raise
        except ArcFullError as error:
            outcome = SubmitOutcome("", Submitted.THROTTLED, message=str(error), retry_after=_THROTTLED)
            return [replace(outcome, token=item.token) for item in items]
        except ArcError as error:
            return [SubmitOutcome(item.token, Submitted.UNKNOWN, message=str(error)) for item in items]
        answers += [{}] * (len(items) - len(answers))
        return [_created(item, answer) for item, answer in zip(items, answers, strict=True)]

    async def _release(self, item: SubmitItem, native_id: str) -> SubmitOutcome:
        """Give a job what it waits for."""
        try:
            if await self._client.put(native_id, SCRIPT, script(self._manifest(item))):
                return SubmitOutcome(item.token, Submitted.ACCEPTED, native_id)
            message = f"the CE has no job {native_id} any more"
        except ArcError as error:
            message = str(error)
        return SubmitOutcome(item.token, Submitted.UNKNOWN, message=message)

    def _manifest(self, item: SubmitItem) -> dict[str, Any]:
        path = {"path": self._settings.path} if self._settings.path else {}
        return {**path, **item.manifest, "token": item.token}

    @contextlib.asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """Keep others of this machine from looking for a token between our look and our call."""
        try:
            lock = await asyncio.to_thread(os.open, self._settings.credential, os.O_RDONLY)
        except OSError as error:
            raise ArcRefusedError(f"{self._settings.credential} cannot be read: {error.strerror}") from error
        try:
            async with asyncio.timeout(self._settings.deadline_s):
                while not _locked(lock):  # noqa: ASYNC110  another process cannot tell us
                    await asyncio.sleep(0.02)
            yield
        finally:
            os.close(lock)

    async def find(self, tokens: Sequence[str]) -> dict[str, str]:
        """Look for tokens in the names of our jobs; those that never got their script do not count."""
        found = await self._lookup.find(tokens)
        return {token: one.native_id for token, one in found.items() if one.released}

    # --------------------------------------------------------------------------------------------------- look

    async def poll(self, ids: Sequence[str], cursor: str = "", measure: Collection[str] = ()) -> PollResult:
        """Ask for all jobs at once; only ended, newly running and measured ones cost a call each."""
        return await self._observer.look(ids, measure if self.capabilities.live_usage else ())

    async def peek(self, native_id: str, stream: str, offset: int, limit: int) -> Chunk:
        """Read a piece of the log; at most 1 MiB."""
        if stream not in _STREAMS:
            raise ValueError(f"no such stream: {stream!r}; there are stdout and stderr")
        size = await self._client.size(native_id, stream)
        if size is None:
            return Chunk(0, b"", 0)  # not started yet, or not there
        start = max(0, size + offset) if offset < 0 else min(offset, size)
        length = min(limit, _CHUNK_BYTES, size - start)
        data = await self._client.read(native_id, stream, start, start + length - 1) if length > 0 else b""
        return Chunk(start, data or b"", size)

    async def fetch_output(self, native_id: str, location: str, target: str) -> None:
        """Bring one file from the job's folder at the CE."""
        if location.startswith("/") or ".." in location.split("/"):
            raise ValueError(f"{location!r} leads out of the job's folder")
        await self._client.download(native_id, location, Path(target))

    async def usage(self, ids: Sequence[str]) -> dict[str, Usage]:
        """Tell what the wrapper measured, or what the batch system accounted where there is no record."""
        told = await self._client.act("info", ids)
        there = [one for one in ids if code(told.get(one)) == 200]
        records = await asyncio.gather(*[self._observer.record(one) for one in there])
        found: dict[str, Usage] = {}
        for one, record in zip(there, records, strict=True):
            used = recorded_usage(record) if record and "usage" in record else _accounted(activity(told[one]))
            if used is not None:
                found[one] = used
        return found

    async def list_resources(self) -> list[ComputeResource]:
        """Tell the queues from what the CE publishes; it is up to some minutes old."""
        told, queue = resources(await self._client.information()), self._settings.queue
        return with_defaults(told, [queue]) if queue else told

    # ------------------------------------------------------------------------------------------------- orders

    async def cancel(self, ids: Sequence[str], grace: timedelta) -> list[Outcome]:
        """Leave word for the wrappers, then have the CE kill."""
        word = json.dumps({"grace_s": grace.total_seconds()}).encode()
        await asyncio.gather(*[self._client.put(one, CANCEL, word) for one in ids], return_exceptions=True)
        told = await self._client.act("kill", ids)
        return [_ordered(one, told.get(one)) for one in ids]

    async def hold(self, ids: Sequence[str], on: bool) -> list[Outcome]:
        """Refuse: the service holds jobs before it submits them."""
        raise NotSupportedError("an ARC CE cannot hold jobs")

    async def purge(self, ids: Sequence[str]) -> list[Outcome]:
        """Have the CE delete what is left of ended jobs; return when it has."""
        ended = {str(entry["id"]) for entry in await self._client.jobs(ENDED)}
        there = await self._client.act("status", [one for one in ids if one not in ended])
        going = {one for one in there if code(there[one]) != 404}
        told = await self._client.act("clean", [one for one in ids if one in ended])
        left = await self._cleaned({one for one in told if code(told[one]) == 202})
        outcomes = []
        for one in ids:
            if one in going:
                outcomes.append(Outcome(one, done=False, message="it has not ended; cancel it first"))
            elif one in left:
                outcomes.append(Outcome(one, done=False, message="the CE is still cleaning it; ask again"))
            else:
                outcomes.append(_ordered(one, told.get(one, {"status-code": "404"})))
        return outcomes

    async def _cleaned(self, ids: set[str]) -> set[str]:
        """Wait until the CE has deleted them; those that are still there after some time."""
        deadline = time.monotonic() + _CLEAN_SECONDS
        left, pause = ids, 0.05
        while left and time.monotonic() < deadline:
            await asyncio.sleep(pause)
            pause = min(2 * pause, 1.0)
            there = await self._client.act("status", sorted(left))
            left = {one for one in left if code(there.get(one)) != 404}
        return left


def _rejected(item: SubmitItem, why: str) -> SubmitOutcome:
    return SubmitOutcome(item.token, Submitted.REJECTED, message=why)


def _created(item: SubmitItem, answer: Mapping[str, Any]) -> SubmitOutcome:
    if code(answer) == 201 and answer.get("id"):
        return SubmitOutcome(item.token, Submitted.ACCEPTED, str(answer["id"]))
    if not answer:
        return SubmitOutcome(item.token, Submitted.UNKNOWN, message="the CE said nothing of it")
    return _rejected(item, f"the CE refused it: {answer.get('reason') or answer.get('status-code')}")


def _ordered(native_id: str, answer: Mapping[str, Any] | None) -> Outcome:
    if code(answer) in (200, 202, 404):
        return Outcome(native_id, done=True)
    return Outcome(native_id, done=False, message=str((answer or {}).get("reason") or "the CE said nothing of it"))


def _accounted(document: Mapping[str, Any]) -> Usage | None:
    """What the batch system used for a job that has ended."""
    states = document.get("State", [])
    rest = [str(one).removeprefix("arcrest:") for one in (states if isinstance(states, list) else [states])]
    return usage_of(document) if any(name in STATES and STATES[name].final for name in rest) else None


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
