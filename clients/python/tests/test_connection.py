"""What a connection does when a service is quiet, away, or asked for more than fits into a call."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.api.scheduler.v1 import scheduler_service_pb2_grpc as stubs
from khomas.client import AsyncClient, KhomasError
from khomas.client import connection as connections
from khomas.client.errors import UNREACHABLE, UsageError


class Desk(stubs.SchedulerServiceServicer):
    """Answers as it is told to."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.cancelled = asyncio.Event()

    async def BatchHoldJobs(self, request: pb.BatchHoldJobsRequest, context: object) -> pb.BatchHoldJobsResponse:  # noqa: N802
        self.calls.append(request)
        return pb.BatchHoldJobsResponse(held=len(request.names), unchanged=1)

    async def BatchCreateJobs(self, request: pb.BatchCreateJobsRequest, context: object) -> pb.BatchCreateJobsResponse:  # noqa: N802
        self.calls.append(request)
        return pb.BatchCreateJobsResponse(jobs=() if request.validate_only else request.jobs, warnings=["rounded"])

    async def ReadSandbox(self, request: pb.ReadSandboxRequest, context: object) -> AsyncIterator[Any]:  # noqa: N802
        yield pb.ReadSandboxResponse(data=b"begun")
        try:
            await asyncio.sleep(60)
        finally:
            self.cancelled.set()


@asynccontextmanager
async def served(desk: Desk, port: int = 0) -> AsyncIterator[int]:
    """The desk on a port."""
    server = grpc.aio.server()
    stubs.add_SchedulerServiceServicer_to_server(desk, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    yield port
    await server.stop(None)


async def seconds_of(work: Callable[[], Any]) -> float:
    """How long it takes to fail as nobody is there."""
    began = time.monotonic()
    with pytest.raises(KhomasError) as failure:
        await work()
    assert failure.value.exit_code == UNREACHABLE
    return time.monotonic() - began


async def test_stream_that_stops_in_the_middle_is_an_error_and_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()  # type: ignore[abstract]  # only what the client calls here
    async with served(desk) as port, AsyncClient(f"127.0.0.1:{port}", "") as client:
        stream = client.connection.stream("scheduler", "ReadSandbox", pb.ReadSandboxRequest(), quiet_seconds=0.3)
        assert (await anext(stream)).data == b"begun"
        with pytest.raises(KhomasError, match=r"was quiet for 0\.3 s") as failure:
            await anext(stream)
        assert failure.value.exit_code == UNREACHABLE
        async with asyncio.timeout(10):
            await desk.cancelled.wait()


async def test_call_to_a_service_that_restarts_is_repeated_until_it_is_back() -> None:
    async with AsyncClient("127.0.0.1:1", "") as client:
        desk = Desk()  # type: ignore[abstract]  # only what the client calls here
        async with served(desk) as port:
            client.connection.endpoint = f"127.0.0.1:{port}"
            await client.jobs.hold(["a"])
        again = asyncio.create_task(client.jobs.hold(["b"]))
        await asyncio.sleep(4)  # longer than a stranger is waited for
        assert not again.done()
        async with served(desk, port), asyncio.timeout(30):
            assert (await again).held == 1


async def test_address_where_nobody_was_ever_met_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_PATIENCE_WITH_STRANGERS", 0.5)
    async with AsyncClient("127.0.0.1:1", "") as client:
        assert await seconds_of(lambda: client.jobs.hold(["a"])) < 10


async def test_more_jobs_than_fit_into_a_call_are_changed_in_parts_and_counted_together() -> None:
    desk = Desk()  # type: ignore[abstract]  # only what the client calls here
    async with served(desk) as port, AsyncClient(f"127.0.0.1:{port}", "") as client:
        answer = await client.jobs.hold([str(number) for number in range(25_000)])
        assert [len(call.names) for call in desk.calls] == [10_000, 10_000, 5_000]
        assert (answer.held, answer.unchanged) == (25_000, 3)
        with pytest.raises(UsageError, match="at least one job"):
            await client.jobs.hold([])


async def test_more_jobs_than_fit_into_a_call_are_all_checked_before_the_first_is_made() -> None:
    desk = Desk()  # type: ignore[abstract]  # only what the client calls here
    async with served(desk) as port, AsyncClient(f"127.0.0.1:{port}", "") as client:
        jobs = await client.submit_many([{"name": str(number), "run": ["true"]} for number in range(7000)])
    assert [job.spec.display_name for job in jobs] == [str(number) for number in range(7000)]
    assert [(len(call.jobs), call.validate_only) for call in desk.calls] == [
        (5000, True),
        (2000, True),
        (5000, False),
        (2000, False),
    ]
    assert len({call.request_id for call in desk.calls}) == 4
