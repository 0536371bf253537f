"""Searches and counts, over children without rows too."""

import grpc
import pytest

from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.kit.boundary.status import reason_of
from khomas.kit.database import count_statements
from khomas.kit.testing import serve
from khomas.scheduler.app import service
from khomas.scheduler.testing import Scheduler, shell, states

FAR = {"limits": {"start_after": "2100-01-01T00:00:00Z"}}


async def found(scheduler: Scheduler, text: str, **options: object) -> list[str]:
    answer = await scheduler.stub.ListJobs(pb.ListJobsRequest(filter=text, **options))  # type: ignore[arg-type]
    return [job.name for job in answer.jobs]


async def test_jobs_are_found_by_tag_state_and_time(database_url: str) -> None:
    async with serve(service, database_urls={"scheduler": database_url}) as served:
        scheduler = Scheduler(served)
        one, two = await scheduler.submit(
            shell("true", tags={"prod": "26"}, **FAR), shell("true", tags={"prod": "27"}, priority=5, **FAR)
        )
        await scheduler.cancel(two.name)
        assert await found(scheduler, "tags.prod = 26") == [one.name]
        assert await found(scheduler, "tags:prod AND state = cancelled") == [two.name]
        assert await found(scheduler, 'state = PENDING AND create_time > "2026-01-01T00:00:00Z"') == [one.name]
        assert await found(scheduler, "priority >= 5") == [two.name]
        assert await found(scheduler, "", order_by="priority desc") == [two.name, one.name]
        counts = await scheduler.stub.CountJobs(pb.CountJobsRequest(group_by="tags.prod"))
        assert dict(counts.counts) == {"26": 1, "27": 1}
        counts = await scheduler.stub.CountJobs(pb.CountJobsRequest(group_by="state", filter="tags.prod = 27"))
        assert dict(counts.counts) == {"CANCELLED": 1}


async def test_children_without_rows_are_listed_and_counted_like_the_others(database_url: str) -> None:
    async with serve(service, database_urls={"scheduler": database_url}) as served:
        scheduler = Scheduler(served)
        [array] = await scheduler.submit(shell("true", splitter={"count": {"count": 7}}, tags={"prod": "26"}, **FAR))
        await scheduler.cancel(f"{array.name}/2")
        children = (await scheduler.stub.ListJobs(pb.ListJobsRequest(parent=array.name))).jobs
        assert states(children) == ["PENDING", "PENDING", "CANCELLED", "PENDING", "PENDING", "PENDING", "PENDING"]
        waiting = await found(scheduler, "state = PENDING AND tags.prod = 26", parent=array.name)
        assert waiting == [f"{array.name}/{index}" for index in (0, 1, 3, 4, 5, 6)]
        assert await found(scheduler, "state = CANCELLED", parent=array.name) == [f"{array.name}/2"]
        counts = await scheduler.stub.CountJobs(pb.CountJobsRequest(parent=array.name, group_by="state"))
        assert dict(counts.counts) == {"PENDING": 6, "CANCELLED": 1}
        got = await scheduler.get(array.name)
        assert dict(got.counts.by_state) == {"PENDING": 6, "CANCELLED": 1}


async def test_pages_of_children_have_no_gap_and_no_repetition(scheduler: Scheduler) -> None:
    [array] = await scheduler.submit(shell("true", splitter={"count": {"count": 25}}, **FAR))
    await scheduler.cancel(f"{array.name}/9")
    names, token = [], ""
    while True:
        request = pb.ListJobsRequest(parent=array.name, page_size=4, page_token=token)
        answer = await scheduler.stub.ListJobs(request)
        names += [job.name for job in answer.jobs]
        token = answer.next_page_token
        if not token:
            break
    assert names == [f"{array.name}/{index}" for index in range(25)]


async def test_unknown_state_is_refused_with_the_nearest(scheduler: Scheduler) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await scheduler.stub.ListJobs(pb.ListJobsRequest(filter="state = FALED"))
    assert reason_of(caught.value) == "FILTER_INVALID"
    assert "FAILED" in str(caught.value.details())


async def test_unknown_names_have_no_job(scheduler: Scheduler) -> None:
    answer = await scheduler.stub.BatchGetJobs(pb.BatchGetJobsRequest(names=["jobs/none", "jobs/"]))
    assert [result.error.code for result in answer.results] == [grpc.StatusCode.NOT_FOUND.value[0]] * 2
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await scheduler.get("jobs/none")
    assert reason_of(caught.value) == "JOB_NOT_FOUND"


async def test_backends_are_listed_with_what_is_free(scheduler: Scheduler) -> None:
    await scheduler.run(shell("true"))
    [backend] = (await scheduler.stub.ListBackends(pb.ListBackendsRequest())).backends
    assert (backend.name, backend.kind, backend.cpus > 0) == ("backends/local", "local", True)


async def test_page_is_read_in_the_order_of_an_index(scheduler: Scheduler) -> None:
    database = scheduler.parts.database
    with count_statements(database) as statements:
        await scheduler.stub.ListJobs(pb.ListJobsRequest(page_size=100))
    [query] = [one for one in statements if "ORDER BY job.create_time DESC" in one]
    async with database.read() as connection:
        plan = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}", (None,) * query.count("?"))
        steps = [row.detail for row in plan.all()]
    assert len(steps) == 1, steps
    assert "job_newest" in steps[0]
