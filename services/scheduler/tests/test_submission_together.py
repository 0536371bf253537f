"""Submissions that come at the same time share a transaction, and nothing else."""

import asyncio
from uuid import uuid4

import grpc
import pytest

from khomas.api.common.v1.event_pb2 import WatchEventsRequest
from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.api.scheduler.v1.job_pb2 import Job
from khomas.kit.database import count_statements
from khomas.kit.telemetry.trace import Trace, enter_trace
from khomas.scheduler.testing import Scheduler, shell

LATER = {"limits": {"start_after": "2100-01-01T00:00:00Z"}}


def request(**spec: object) -> pb.BatchCreateJobsRequest:
    return pb.BatchCreateJobsRequest(jobs=[Job(spec=shell("true", **LATER, **spec))], request_id=str(uuid4()))


async def test_many_small_submissions_cost_few_statements(scheduler: Scheduler) -> None:
    requests = [request(note=str(number)) for number in range(64)]
    stub, database = scheduler.stub, scheduler.parts.database
    with count_statements(database) as statements:
        async with database.write():  # meanwhile they queue up
            calls = [asyncio.ensure_future(stub.BatchCreateJobs(one)) for one in requests]
            await asyncio.sleep(1)
        answers = await asyncio.gather(*calls)
    assert len({answer.jobs[0].uid for answer in answers}) == 64
    # Four a job without groups.
    assert len([one for one in statements if one.startswith("INSERT INTO spec")]) <= 32


async def test_bad_submission_among_good_ones_is_refused_alone(scheduler: Scheduler) -> None:
    nobody = [{"job": f"jobs/{uuid4()}"}]
    requests = [request(), request(dependencies=nobody), request()]
    stub = scheduler.stub
    answers = await asyncio.gather(*[stub.BatchCreateJobs(one) for one in requests], return_exceptions=True)
    assert [isinstance(answer, pb.BatchCreateJobsResponse) for answer in answers] == [True, False, True]
    assert isinstance(answers[1], grpc.aio.AioRpcError)
    assert answers[1].code() == grpc.StatusCode.FAILED_PRECONDITION
    assert len((await stub.ListJobs(pb.ListJobsRequest())).jobs) == 2


async def test_same_request_sent_many_times_at_once_makes_one_job(scheduler: Scheduler) -> None:
    asked = request()
    stub = scheduler.stub
    answers = await asyncio.gather(*[stub.BatchCreateJobs(asked) for _ in range(8)])
    assert len({answer.jobs[0].uid for answer in answers}) == 1
    assert len((await stub.ListJobs(pb.ListJobsRequest())).jobs) == 1


async def submit_in(scheduler: Scheduler, trace: str) -> None:
    enter_trace(Trace(trace, "00f067aa0ba902b7"))
    await scheduler.stub.BatchCreateJobs(request())


async def test_events_carry_the_trace_of_their_own_call(scheduler: Scheduler) -> None:
    traces = [f"{number:032x}" for number in range(1, 9)]
    await asyncio.gather(*[asyncio.create_task(submit_in(scheduler, trace)) for trace in traces])
    events = [
        event
        async for batch in scheduler.stub.WatchEvents(WatchEventsRequest(until_now=True))
        for event in batch.events
    ]
    assert sorted(event.trace_id for event in events) == traces


@pytest.mark.parametrize("jobs", [100, 101])
async def test_submission_at_and_over_the_size_that_shares_is_whole(scheduler: Scheduler, jobs: int) -> None:
    one = request().jobs[0]
    asked = pb.BatchCreateJobsRequest(jobs=[one] * jobs, request_id=str(uuid4()))
    answer = await scheduler.stub.BatchCreateJobs(asked)
    assert len({job.uid for job in answer.jobs}) == jobs
    assert await scheduler.stub.BatchCreateJobs(asked) == answer
