"""How many jobs may wait in an account, whoever asks at the same time and however often."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import grpc
import pytest

from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.api.scheduler.v1.job_pb2 import Job
from khomas.api.scheduler.v1.job_spec_pb2 import JobSpec
from khomas.kit.testing import serve
from khomas.scheduler.testing import Scheduler, shell
from khomas.scheduler.testing.backend import BatchSystem, memory_scheduler

LATER = {"limits": {"start_after": "2100-01-01T00:00:00Z"}}
SHARES = {"hess": {"max_queued": 250}, "hess/users": {}, "few": {"max_queued": 3}}


@pytest.fixture
async def limited(tmp_path: Path, database_url: str, system: BatchSystem) -> AsyncIterator[Scheduler]:
    """A scheduler with accounts in which few jobs may wait, on both databases."""
    urls, settings = {"scheduler": database_url}, {"scheduler": {"shares": SHARES, "engine": False}}
    services = memory_scheduler(system)
    async with serve(services, state=tmp_path / "state", database_urls=urls, settings=settings) as served:
        yield Scheduler(served)


def request(*specs: JobSpec) -> pb.BatchCreateJobsRequest:
    return pb.BatchCreateJobsRequest(jobs=[Job(spec=spec) for spec in specs], request_id=str(uuid4()))


async def accepted(scheduler: Scheduler, requests: list[pb.BatchCreateJobsRequest]) -> int:
    """Ask all at once; how many jobs were taken in. The others are refused by their quota."""
    answers = await asyncio.gather(*[scheduler.stub.BatchCreateJobs(one) for one in requests], return_exceptions=True)
    refused = [one for one in answers if isinstance(one, grpc.aio.AioRpcError)]
    assert {one.code() for one in refused} <= {grpc.StatusCode.RESOURCE_EXHAUSTED}
    return sum(len(one.jobs) for one in answers if isinstance(one, pb.BatchCreateJobsResponse))


async def test_repeated_request_is_answered_when_the_account_is_full(limited: Scheduler) -> None:
    asked = request(*[shell("true", share="few")] * 3)
    first = await limited.stub.BatchCreateJobs(asked)

    assert await limited.stub.BatchCreateJobs(asked) == first
    assert await accepted(limited, [request(shell("true", share="few"))]) == 0


async def test_repeated_request_is_answered_when_its_deadline_has_passed(limited: Scheduler) -> None:
    spec = shell("true", share="few")
    spec.limits.start_before.FromDatetime(datetime.now(UTC) + timedelta(seconds=1))
    asked = request(spec)
    first = await limited.stub.BatchCreateJobs(asked)
    await asyncio.sleep(1.2)

    assert await limited.stub.BatchCreateJobs(asked) == first


async def test_full_account_refuses_what_is_only_validated(limited: Scheduler) -> None:
    asked = request(*[shell("true", share="few")] * 4)
    asked.validate_only = True

    assert await accepted(limited, [asked]) == 0


async def test_submissions_at_the_same_time_share_the_room(limited: Scheduler) -> None:
    requests = [request(shell("true", share="few", **LATER)) for _ in range(20)]

    assert await accepted(limited, requests) == 3


async def test_large_submissions_at_the_same_time_share_the_room(limited: Scheduler) -> None:
    requests = [request(*[shell("true", share="hess/users", **LATER)] * 101) for _ in range(5)]

    assert await accepted(limited, requests) == 202
