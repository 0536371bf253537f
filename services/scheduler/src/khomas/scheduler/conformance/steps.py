"""What all tests of the suite do."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from khomas.scheduler.backends.interface import Backend, Observation, State, SubmitItem, Submitted
from khomas.scheduler.conformance.jobs import MIB, OpenBackend, pause


class Steps:
    """Submit, look, wait for the end."""

    patience_s = 30.0

    @pytest.fixture
    async def backend(self, open_backend: OpenBackend) -> AsyncIterator[Backend]:
        """Open one backend for the test."""
        backend = open_backend()
        yield backend
        await backend.aclose()

    async def submitted(self, backend: Backend, items: Sequence[SubmitItem]) -> list[str]:
        """Submit; return native ids."""
        outcomes = await backend.submit(items)
        assert [outcome.kind for outcome in outcomes] == [Submitted.ACCEPTED] * len(items), outcomes[:3]
        return [outcome.native_id for outcome in outcomes]

    async def look(self, backend: Backend, native_id: str) -> Observation:
        """Poll for one job, without a cursor."""
        return (await backend.poll([native_id])).observations[0]

    async def wait_for(self, backend: Backend, native_id: str, *states: State) -> Observation:
        """Poll until the job is in one of these states."""
        deadline = time.monotonic() + self.patience_s
        while (seen := await self.look(backend, native_id)).state not in states:
            assert time.monotonic() < deadline, f"still {seen}"
            await asyncio.sleep(pause(backend))
        return seen

    async def ended(self, backend: Backend, native_id: str) -> Observation:
        """Poll until the job has ended."""
        return await self.wait_for(backend, native_id, State.SUCCEEDED, State.FAILED, State.CANCELLED)

    async def run(self, backend: Backend, item: SubmitItem) -> dict[str, Any]:
        """Run one job; return its exit record."""
        [native_id] = await self.submitted(backend, [item])
        seen = await self.ended(backend, native_id)
        assert seen.record is not None
        assert State[seen.record["state"]] == seen.state
        return dict(seen.record)

    async def printed(self, backend: Backend, item: SubmitItem) -> str:
        """Run one job that succeeds; return what it printed."""
        assert (await self.run(backend, item))["state"] == "SUCCEEDED"
        ids = await backend.find([item.token])
        return (await backend.peek(ids[item.token], "stdout", 0, MIB)).data.decode()
