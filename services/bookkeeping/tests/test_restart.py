"""A bookkeeping that is killed between any two steps makes nothing twice and loses nothing."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from sqlalchemy import update

from khomas.api.bookkeeping.v1.production_pb2 import Production
from khomas.api.scheduler.v1 import scheduler_service_pb2 as scheduler_pb
from khomas.bookkeeping.tables import submission
from khomas.bookkeeping.testing import Client, FakeScheduler, shower_grid
from khomas.kit.boundary.call import Context
from khomas.kit.testing import Served

Start = Callable[[], AbstractAsyncContextManager[Served]]


class Forgetful(FakeScheduler):
    """Does what it is asked and never answers, as when the line breaks, until it is told to."""

    answers = False

    async def BatchCreateJobs(  # noqa: N802  the contract's name
        self, request: scheduler_pb.BatchCreateJobsRequest, context: Context
    ) -> scheduler_pb.BatchCreateJobsResponse:
        answer = await super().BatchCreateJobs(request, context)
        if not self.answers and not request.validate_only:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the line is broken")
        return answer


@pytest.fixture
def scheduler() -> Forgetful:
    return Forgetful()  # type: ignore[abstract]  # only what bookkeeping calls


async def test_a_lost_answer_of_the_scheduler_makes_one_array(start: Start, scheduler: Forgetful) -> None:
    async with start() as served:
        client = Client(served.channel)
        await client.begin(shower_grid(20, requested="100", each="10"))
        await client.waiting(scheduler, 10)
    scheduler.answers = True
    async with start() as served:
        client = Client(served.channel)
        scheduler.finish(scheduler.waiting)
        end = await client.in_state("productions/showers", Production.STATE_COMPLETED)
    assert len(scheduler.jobs) == 1
    assert end.progress.jobs_total == end.progress.jobs_succeeded == 10


async def test_a_submission_is_looked_for_when_its_request_is_too_old_to_be_remembered(
    start: Start, scheduler: Forgetful
) -> None:
    async with start() as served:
        await Client(served.channel).begin(shower_grid(20, requested="100", each="10"))
        await Client(served.channel).waiting(scheduler, 10)
        async with served.services["bookkeeping"].parts.write() as connection:
            long_ago = datetime.now(UTC) - timedelta(days=2)
            await connection.execute(update(submission).values(create_time=long_ago))
    scheduler.answers = True
    scheduler.forget_requests()
    async with start() as served:
        scheduler.finish(scheduler.waiting)
        await Client(served.channel).in_state("productions/showers", Production.STATE_COMPLETED)
    assert len(scheduler.jobs) == 1


async def test_what_ended_while_it_was_away_is_counted(start: Start, scheduler: Forgetful) -> None:
    scheduler.answers = True
    async with start() as served:
        client = Client(served.channel)
        await client.begin(shower_grid(20, 40, requested="100", each="10"))
        jobs = await client.waiting(scheduler, 20)
        scheduler.finish(jobs[:5])
        await client.cells_when("productions/showers", lambda cells: cells[0].progress.jobs_succeeded == 5)
    scheduler.finish(jobs[5:19])
    async with start() as served:
        client = Client(served.channel)
        scheduler.finish(jobs[19:])
        end = await client.in_state("productions/showers", Production.STATE_COMPLETED)
    assert end.progress.produced_events == 200


async def test_a_service_that_is_stopped_again_and_again_comes_to_the_same_end(
    start: Start, scheduler: Forgetful
) -> None:
    scheduler.answers = True
    async with start() as served:
        await Client(served.channel).begin(shower_grid(20, 40, requested="100", each="10", max_active_jobs=7))
    for pause in (0.0, 0.01, 0.02, 0.04, 0.08):
        async with start():
            await asyncio.sleep(pause)
            scheduler.finish(scheduler.waiting)
    async with start() as served:
        client = Client(served.channel)
        while (end := await client.get("productions/showers")).state != Production.STATE_COMPLETED:
            scheduler.finish(scheduler.waiting)
    assert end.progress.produced_events == 200
    sets = [one.parameters for job in scheduler.jobs.values() for one in job.spec.splitter.args.sets]
    assert len(sets) == end.progress.jobs_total == 20


async def test_events_that_the_scheduler_forgot_are_made_up_for(start: Start, scheduler: Forgetful) -> None:
    scheduler.answers = True
    async with start() as served:
        client = Client(served.channel)
        await client.begin(shower_grid(20, requested="100", each="10"))
        jobs = await client.waiting(scheduler, 10)
        scheduler.finish(jobs[:1])
        await client.cells_when("productions/showers", lambda cells: cells[0].progress.jobs_succeeded == 1)
    scheduler.finish(jobs[1:])
    scheduler.oldest = 10
    async with start() as served:
        end = await Client(served.channel).in_state("productions/showers", Production.STATE_COMPLETED)
    assert end.progress.jobs_succeeded == 10
