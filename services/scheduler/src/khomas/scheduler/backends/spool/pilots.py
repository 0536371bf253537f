"""Pilots: jobs of the batch system that run short jobs one after the other; a dialect of their own for those."""

import json
import logging
import math
import time
from collections.abc import Awaitable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from khomas.scheduler.backends.commands import CommandFailedError
from khomas.scheduler.backends.interface import ComputeResource, State, SubmitItem, SubmitOutcome, Submitted, Usage
from khomas.scheduler.backends.spool.dialect import (
    Answer,
    Dialect,
    Needs,
    Refusal,
    Status,
    Submission,
    UnreadableAnswerError,
    answer_of,
    needs_of,
)
from khomas.scheduler.backends.spool.handover import Handover
from khomas.scheduler.backends.spool.hosts import Keeper
from khomas.scheduler.backends.spool.settings import PilotSettings
from khomas.scheduler.wrapper import PILOT, POOL_KEEPER

log = logging.getLogger(__name__)

# Native ids in the pool are the names of submissions; no batch system calls its jobs so.
_OURS = "khomas-"
_NOTHING: Mapping[str, Any] = {"pool": [], "held": [], "pilots": {}}
# In place of an index, of a job that was submitted by itself.
_ALONE = "-"
# Of the wall time of a pilot that one job may state; the rest is for its start and its end.
_SHARE = 0.8
# A batch system that refused pilots is asked again, for smaller ones, after so long.
_PAUSE_SECONDS = 30.0
_MINUTE = 60.0
# A pilot that runs, as the batch system says, is ended when it was quiet for so many times the limit.
_SILENT_LEASES = 10
# Between the pilot's own end and that of its job in the batch system.
_END_SECONDS = 30.0
# Memory of the pilot itself, beside that of its jobs.
_OWN_BYTES = 256 << 20


class PilotDialect:
    """The dialect of a batch system, with the pool for jobs that go by pilot."""

    by_process = False

    def __init__(self, inner: Dialect, settings: PilotSettings, pool: Sequence[str]) -> None:
        self.inner = inner
        self.kind = inner.kind
        self.native_options = inner.native_options
        self.can_hold = inner.can_hold
        self.margin_seconds = inner.margin_seconds
        self.avoids_nodes = inner.avoids_nodes
        self._settings = settings
        # As long as a pilot may run: the limit of its queue may be lower than what is configured.
        self.wall_s = settings.pilot_wall_s
        # The pool keeper with its operation and the spool to come.
        self._pool = list(pool)
        # The last look: the pool, and what the batch system told of the pilots.
        self.seen = _NOTHING
        self.natives: Mapping[str, Status] = {}
        # Whether there are jobs enough for pilots.
        self.many = False
        # Why there is no pilot, for those who wait for one.
        self.trouble = ""

    def order(self, operation: str, *arguments: str) -> list[str]:
        """A command of the pool keeper."""
        return [*self._pool, operation, str(self._settings.spool), *arguments]

    def takes(self, needs: Needs) -> bool:
        """Whether such a job can go by pilot."""
        limits = self._settings
        return (
            (needs.wall_time_s or math.inf) <= limits.short_job_seconds
            and needs.wall_time_s <= _SHARE * self.wall_s
            and needs.cpu_milli <= 1000 * limits.pilot_cores
            and needs.memory_bytes <= limits.pilot_memory_bytes
            and needs.queue in ("", limits.pilot_queue)
            and not needs.native
            and not needs.avoid_nodes
        )

    def submission(self, needs: Needs, runs: str) -> Submission:
        """Put short jobs into the pool; hand the others over."""
        if not (self.many and self.takes(needs)):
            return self.inner.submission(needs, runs)
        what = [str(needs.cpu_milli), str(needs.memory_bytes), str(math.ceil(needs.wall_time_s))]
        words = self.order("add", "@BATCH@", *what)
        return Submission("", words, words, native=rf'"native": "({_OURS}\w+)"', refused="")

    def refusal(self, answer: Answer) -> Refusal:
        """Say what a failed submission means."""
        return self.inner.refusal(answer)

    def element(self, native: str, index: int) -> str:
        """As the batch system would call it."""
        return self.inner.element(native, index)

    def whole(self, native_id: str) -> tuple[str, int]:
        """As the batch system would call it."""
        return self.inner.whole(native_id)

    def status(self, natives: Sequence[str]) -> list[list[str]]:
        """The batch system and the pool, each in one look; the pool only when there is something of ours."""
        pilots = [one["place"]["native"] for one in self.seen["pilots"].values() if one["place"]]
        direct = _direct(natives)
        looks = [self.order("look")] if self.seen["pilots"] or len(direct) < len(natives) else []
        return [*self.inner.status(list(dict.fromkeys([*direct, *pilots]))), *looks]

    def statuses(self, answers: Sequence[Answer]) -> Mapping[str, Status]:
        """By native id."""
        asked = len(self.inner.status([]))
        natives = dict(self.inner.statuses(answers[:asked]))
        self.seen = json.loads(answers[asked].text()) if len(answers) > asked else _NOTHING
        self.natives = natives
        waits = Status(State.QUEUED, self._why())
        found = {**natives, **{self._native(entry): waits for entry in self.seen["pool"]}}
        found |= {self._native(entry): Status(State.QUEUED, "held") for entry in self.seen["held"]}
        for name, pilot in self.seen["pilots"].items():
            gone = self.gone(name)
            for entry, begun in pilot["leases"].items():
                if not gone:
                    found[self._native(entry)] = self._leased(pilot, begun)
                elif not begun:
                    found[self._native(entry)] = waits
        return found

    def _leased(self, pilot: Mapping[str, Any], begun: float) -> Status:
        host, queue = (pilot["told"] or {}).get("host", ""), self._settings.pilot_queue
        if not begun:
            return Status(State.QUEUED, "taken by a pilot", host, queue)
        return Status(State.RUNNING, "in a pilot", host, queue, datetime.fromtimestamp(begun, UTC))

    def _why(self) -> str:
        """A sentence for jobs that wait."""
        pilots = self.seen["pilots"].values()
        if any(one["told"] and not one["told"]["failure"] for one in pilots):
            return "waits for a place in a pilot"
        if self.trouble:
            return self.trouble
        states = [self.natives.get(self.pilot_native(one)) for one in pilots]
        told = next((one.native_state for one in states if one is not None), "")
        return f"waits for a pilot, which is {told}" if told else "waits for a pilot"

    def _native(self, entry: str) -> str:
        _, batch, index, *_ = entry.split(".")
        return batch if index == _ALONE else self.inner.element(batch, int(index))

    def gone(self, name: str) -> bool:
        """Whether a pilot will do nothing any more."""
        pilot = self.seen["pilots"][name]
        if pilot["end"]:
            return True
        if pilot["quiet_s"] < self._settings.lease_seconds:
            return False
        status = self.natives.get(self.pilot_native(pilot))
        return status is None or status.state.final

    def silent(self, name: str) -> bool:
        """Whether the batch system says that a pilot runs, of which nothing was heard for a very long time."""
        pilot = self.seen["pilots"][name]
        status = self.natives.get(self.pilot_native(pilot))
        runs = status is not None and status.state is State.RUNNING
        return runs and not pilot["end"] and pilot["quiet_s"] > _SILENT_LEASES * self._settings.lease_seconds

    def failure(self, pilot: Mapping[str, Any]) -> str:
        """Why a pilot could run nothing."""
        told, end = pilot["told"] or {}, pilot["end"] or {}
        if told.get("failure"):
            return str(told["failure"])
        if told.get("ran") or pilot["leases"]:
            return ""
        if end:
            return str(end["message"]) if end["state"] == "FAILED" else ""
        if told:
            return ""
        status = self.natives.get(self.pilot_native(pilot))
        return status.native_state if status is not None and status.state is State.FAILED else ""

    def pilot_native(self, pilot: Mapping[str, Any]) -> str:
        """What the batch system calls a pilot; empty when it was never handed over."""
        place = pilot["place"]
        if not place:
            return ""
        return self.inner.element(place["native"], place["index"]) if place["array"] else str(place["native"])

    def accounting(self, native_ids: Sequence[str]) -> list[list[str]]:
        """What went by pilot is not in the accounting of the batch system."""
        return self.inner.accounting(_direct(native_ids))

    def accounts(self, answers: Sequence[Answer]) -> Mapping[str, tuple[Status, Usage]]:
        """By native id."""
        return self.inner.accounts(answers)

    def search(self, batches: Sequence[str]) -> list[list[str]]:
        """In the batch system and in the pool."""
        return [*self.inner.search(batches), self.order("found", *batches)]

    def found(self, answers: Sequence[Answer]) -> Mapping[str, str]:
        """Native ids by the names of the submissions."""
        ours = json.loads(answers[-1].text())["found"]
        return {**self.inner.found(answers[:-1]), **{name: name for name in ours}}

    def cancel(self, native_ids: Sequence[str], *, running: bool) -> list[list[str]]:
        """Pilots look for the markers themselves; what waits leaves the pool."""
        direct = _direct(native_ids)
        orders = self.inner.cancel(direct, running=running) if direct else []
        return [*orders, *([] if running else self._move("drop", native_ids))]

    def hold(self, native_ids: Sequence[str], on: bool) -> list[list[str]]:
        """Take what waits in the pool out of it."""
        direct = _direct(native_ids)
        orders = self.inner.hold(direct, on) if direct else []
        return [*orders, *self._move("hold" if on else "release", native_ids)]

    def _move(self, operation: str, native_ids: Sequence[str]) -> list[list[str]]:
        places: dict[str, list[str]] = {}
        for one in native_ids:
            if one.startswith(_OURS):
                batch, index = self.whole(one)
                places.setdefault(batch, []).append(_ALONE if batch == one else f"{index:06d}")
        words = [f"{batch}:{','.join(indexes)}" for batch, indexes in places.items()]
        return [self.order(operation, *words)] if words else []

    def resources(self) -> list[list[str]]:
        """Those of the batch system."""
        return self.inner.resources()

    def queues(self, answers: Sequence[Answer]) -> list[ComputeResource]:
        """Those of the batch system; pilots keep to the limit of theirs."""
        found, queue = self.inner.queues(answers), self._settings.pilot_queue
        walls = [one.max_wall_time for one in found if (one.queue == queue if queue else one.is_default)]
        longest = [wall.total_seconds() - self.margin_seconds - _END_SECONDS for wall in walls if wall is not None]
        limited = longest and len(longest) == len(walls)
        self.wall_s = min(self._settings.pilot_wall_s, max(longest)) if limited else self._settings.pilot_wall_s
        return found


def _direct(native_ids: Sequence[str]) -> list[str]:
    return [one for one in native_ids if not one.startswith(_OURS)]


class Pilots:
    """Submits as many pilots as the waiting jobs need, and buries those that are gone."""

    def __init__(self, keeper: Keeper, settings: PilotSettings, dialect: Dialect) -> None:
        pool = keeper.command(keeper.host.python, POOL_KEEPER)
        self.dialect = PilotDialect(dialect, settings, pool)
        self._keeper = keeper
        self._settings = settings
        # Pilots are jobs like others, with the wrapper around them.
        self._handover = Handover(keeper, settings, dialect, {})
        # Silent ones that the batch system was told to end.
        self._ended: set[str] = set()
        # When how many jobs came that could go by pilot.
        self._short: list[tuple[float, int]] = []
        # Until when none are submitted, and whether those after that are for one job each.
        self._resumes = 0.0
        self._single = False
        unknown = sorted(settings.pilot_native.keys() - dialect.native_options)
        if unknown:
            known = ", ".join(sorted(dialect.native_options))
            raise ValueError(f"pilot_native: {dialect.kind} has no option {', '.join(unknown)}; there are: {known}")

    def before_submission(self, items: Sequence[SubmitItem]) -> None:
        """See whether there are jobs enough for pilots."""
        now, short = time.monotonic(), sum(self.dialect.takes(needs_of(item)) for item in items)
        self._short = [(when, number) for when, number in self._short if now - when < _MINUTE] + [(now, short)]
        enough = sum(number for _, number in self._short) >= self._settings.pilot_from_jobs
        self.dialect.many = enough or bool(self.dialect.seen["pilots"])

    async def after_submission(self, outcomes: Sequence[SubmitOutcome]) -> None:
        """See to pilots for what was just put into the pool; a failure is made good by the next poll."""
        if any(one.kind is Submitted.ACCEPTED and one.native_id.startswith(_OURS) for one in outcomes):
            await self._attempt(self._submit())

    async def tend(self) -> None:
        """Act on what the last look told."""
        await self._attempt(self._end_silent())
        await self._attempt(self._bury())
        if self.dialect.seen["pool"] and len(self.dialect.seen["pilots"]) < self._settings.pilots:
            await self._attempt(self._submit())

    async def _attempt(self, work: Awaitable[None]) -> None:
        try:
            await work
        except (CommandFailedError, UnreadableAnswerError) as error:
            log.warning("pilots.untended", extra={"backend": self.dialect.kind, "error": str(error)})

    async def _end_silent(self) -> None:
        """Have the batch system end pilots that are silent: its word is needed before they are given up."""
        silent = [name for name in self.dialect.seen["pilots"] if self.dialect.silent(name)]
        fresh = [name for name in silent if name not in self._ended]
        self._ended = set(silent)
        if fresh:
            natives = [self.dialect.pilot_native(self.dialect.seen["pilots"][name]) for name in fresh]
            orders = self.dialect.inner.cancel(natives, running=False)
            await self._keeper.ask("commands", commands=orders, commands_each=len(orders))
            log.warning("pilots.silent", extra={"backend": self.dialect.kind, "natives": natives})

    async def _bury(self) -> None:
        pilots = self.dialect.seen["pilots"]
        gone = [name for name, one in pilots.items() if self.dialect.gone(name) and not self._warns(one)]
        unknown = [name for name in gone if not pilots[name]["place"]]
        if unknown:
            # A crash may have kept their native ids from us.
            found = await self._handover.find(unknown)
            gone = [name for name in gone if name not in found]
        if gone:
            # Their own folders first: what is left after a crash in between is found again by the places.
            await self._keeper.ask("purge", tokens=gone, gone=gone)
            told = await self._order("bury", *gone)
            for name in gone:
                del pilots[name]
            if told["back"] or told["lost"]:
                log.warning("pilot.lost", extra={"back": len(told["back"]), "lost": len(told["lost"])})

    def _warns(self, pilot: Mapping[str, Any]) -> bool:
        """Whether it ended a short while ago without having run anything, and for a reason; then it keeps its place."""
        failure = self.dialect.failure(pilot)
        if failure:
            self.dialect.trouble = f"waits for a pilot; the last one failed: {failure}"
        return bool(failure) and pilot["quiet_s"] < self._settings.failed_seconds

    async def _submit(self) -> None:
        """Submit what the pool keeper finds wanting."""
        settings = self._settings
        if time.monotonic() < self._resumes:
            return
        cpu = 0 if self._single else 1000 * settings.pilot_cores
        limits = [settings.pilots, cpu, settings.pilot_memory_bytes, self.dialect.wall_s]
        reserved = (await self._order("reserve", *map(str, limits)))["reserved"]
        if not reserved:
            return
        outcomes = await self._handover.submit([self._item(name, size) for name, size in reserved.items()])
        refused = [one for one in outcomes if one.kind in (Submitted.REJECTED, Submitted.THROTTLED)]
        self.dialect.trouble = f"waits for a pilot, which was refused: {refused[0].message}" if refused else ""
        if refused:
            self._resumes = time.monotonic() + _PAUSE_SECONDS
            # It may take what is no bigger than one of the jobs.
            self._single = self._single or any(one.kind is Submitted.REJECTED for one in refused)
            await self._order("bury", *[one.token for one in refused])

    def _item(self, name: str, size: Mapping[str, Any]) -> SubmitItem:
        settings = self._settings
        options = {"cpu-milli": size["cpu_milli"], "memory-bytes": size["memory_bytes"]}
        options |= {"wall-seconds": size["wall_s"], "idle-seconds": settings.pilot_idle_s}
        words = [word for option, value in options.items() for word in (f"--{option}", str(value))]
        resources = {"cpu_milli": size["cpu_milli"], "wall_time_s": size["wall_s"] + _END_SECONDS}
        resources |= {"memory_bytes": size["memory_bytes"] + _OWN_BYTES} if size["sums_memory"] else {}
        command = [*self._keeper.command(settings.node_python, PILOT), self._keeper.spool, name, *words]
        manifest = {"command": command, "job": "pilot", "resources": resources, "kill_grace_s": _END_SECONDS}
        manifest["inherit_env"] = True
        return SubmitItem(name, manifest, queue=settings.pilot_queue, native=settings.pilot_native)

    async def _order(self, operation: str, *arguments: str) -> dict[str, Any]:
        """Have the pool keeper do something. Raises `UnreadableAnswerError`."""
        told = await self._keeper.ask("commands", commands=[self.dialect.order(operation, *arguments)])
        answer: dict[str, Any] = json.loads(answer_of(told["commands"][0]).text())
        return answer
