"""Whatever happens in whatever order: what must always hold of jobs."""

import asyncio
import contextlib
import tempfile
from collections import Counter
from collections.abc import Coroutine
from itertools import pairwise
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from khomas.api.common.v1.event_pb2 import WatchEventsRequest
from khomas.api.scheduler.v1.job_pb2 import Job
from khomas.api.scheduler.v1.state_pb2 import DesiredState
from khomas.kit.testing import serve
from khomas.scheduler.engine.engine import Engine
from khomas.scheduler.lifecycle.transitions import ALLOWED
from khomas.scheduler.records import FINAL
from khomas.scheduler.testing import Scheduler, shell
from khomas.scheduler.testing.backend import BatchSystem, Handover, memory_scheduler

WHICH = st.integers(0, 59)
_SETTINGS = {"engine": False, "initial_backoff": 0.0, "lost_after": 0.0, "lost_after_polls": 2, "max_attempts": 3}


class Jobs(RuleBasedStateMachine):
    """The real store and the real engine, step by step, over a batch system that misbehaves."""

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.stack = contextlib.AsyncExitStack()
        self.system = BatchSystem()
        self.names: list[str] = []
        # Name to version, state and number of attempts at the last look.
        self.seen: dict[str, tuple[int, int, int]] = {}
        self.doomed: dict[str, int] = {}
        self.do(self._open())

    async def _open(self) -> None:
        folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        services = {"scheduler": _SETTINGS}
        served = await self.stack.enter_async_context(
            serve(memory_scheduler(self.system, max_jobs=4), state=folder, settings=services)
        )
        self.scheduler = Scheduler(served)
        await self.scheduler.parts.desk.leadership.acquire()

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, 30))

    @property
    def engine(self) -> Engine:
        return self.scheduler.parts.engine

    @rule(size=st.integers(0, 4), most=st.integers(0, 2), depends=st.booleans())
    def submit(self, size: int, most: int, depends: bool) -> None:
        spec: dict[str, object] = {}
        if size:
            spec["splitter"] = {"count": {"count": size}, "max_running": most}
        if depends and self.names:
            spec["dependencies"] = [{"job": self.names[-1]}]
        [job] = self.do(self.scheduler.submit(shell("true", **spec)))
        self.names.append(job.name)

    @rule(handover=st.sampled_from([one for one in Handover if one not in (Handover.DIES_BEFORE, Handover.DIES_AFTER)]))
    def hand_over(self, handover: Handover) -> None:
        self.system.handover = handover
        self.do(self.engine.dispatcher.step())
        self.system.handover = Handover.ACCEPT

    @rule()
    def look_for_lost_ones(self) -> None:
        for one in self.scheduler.parts.desk.open.values():
            one.find_at = min(one.find_at, self.loop.time()) if one.find_at > 0 else one.find_at
        self.do(self.engine.dispatcher.step())

    @rule()
    def look(self) -> None:
        self.do(self.engine.observers[0].step())

    # What is drawn must not depend on what there is: that depends on the clock, too.
    @rule(which=WHICH, reason=st.sampled_from([0, 0, 200, 302, 402, 403]))
    def end(self, which: int, reason: int) -> None:
        if going := self.system.going:
            self.system.end(going[which % len(going)], reason)

    @rule(which=WHICH)
    def start(self, which: int) -> None:
        if going := self.system.going:
            self.system.start(going[which % len(going)])

    @rule(which=WHICH)
    def vanish(self, which: int) -> None:
        """A system may lose what it acknowledged; what it loses before, it never had."""
        if known := [token for token in self.system.going if token in self.system.known]:
            self.system.vanish(known[which % len(known)])

    @rule(which=WHICH, child=st.integers(-1, 3))
    def cancel(self, which: int, child: int) -> None:
        if not self.names:
            return
        name = self.names[which % len(self.names)]
        if 0 <= child < self.do(self.scheduler.get(name)).counts.total:
            name = f"{name}/{child}"
        self.do(self.scheduler.cancel(name))
        self.do(self.engine.housekeeping.cancel_step())

    @rule()
    def die_and_begin_again(self) -> None:
        """Everything that the engine had in mind is gone."""
        self.engine._forget()
        self.do(self.engine.load())

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "loop"):
            self.do(self._check())

    async def _check(self) -> None:
        events = await self._events()
        for name in self.names:
            array = await self.scheduler.get(name)
            children = await self.scheduler.children(name) if array.counts.total else []
            if array.counts.total:
                by_state = Counter(child.status.state for child in children)
                assert sum(array.counts.by_state.values()) == array.counts.total == len(children)
                assert sorted(by_state.values()) == sorted(array.counts.by_state.values())
            for job in children or [array]:
                self._check_job(job, events.get(job.name, []))
        assert all(number == 1 for number in Counter(self.system.submitted).values())

    def _check_job(self, job: Job, events: list[Job]) -> None:
        state, attempts = job.status.state, job.attempts
        assert [attempt.number for attempt in attempts] == list(range(1, len(attempts) + 1))
        open_ones = [attempt for attempt in attempts if attempt.state not in FINAL]
        assert len(open_ones) <= 1
        assert not (state in FINAL and open_ones)
        version, before, number = self.seen.get(job.name, (0, 0, 0))
        if before in FINAL:
            assert (job.status.version, state, len(attempts)) == (version, before, number)
        self.seen[job.name] = (job.status.version, state, len(attempts))
        if job.status.desired == DesiredState.DESIRED_STATE_CANCEL:
            assert self.doomed.setdefault(job.name, len(attempts)) == len(attempts)
        versions = [event.status.version for event in events]
        assert versions == sorted(set(versions))
        if events:
            assert versions[-1] == job.status.version
        for one, two in pairwise(events):
            assert two.status.version == one.status.version + 1
            assert one.status.state == two.status.state or two.status.state in ALLOWED[one.status.state]

    async def _events(self) -> dict[str, list[Job]]:
        found: dict[str, list[Job]] = {}
        async for batch in self.scheduler.stub.WatchEvents(WatchEventsRequest(until_now=True)):
            for event in batch.events:
                job = Job()
                event.resource.Unpack(job)
                found.setdefault(event.subject, []).append(job)
        return found

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.do(self.stack.aclose())
            self.loop.close()


TestJobs = Jobs.TestCase
TestJobs.settings = settings(
    max_examples=15,
    stateful_step_count=25,
    deadline=None,
    # Every example starts a server; shrinking would take minutes. A failure prints its steps and its seed.
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=list(HealthCheck),
    print_blob=False,
    database=None,
)
