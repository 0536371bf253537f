"""What people do with productions that exist, through the wire."""

import asyncio
from collections.abc import Awaitable
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from khomas.api.bookkeeping.v1 import bookkeeping_service_pb2 as pb
from khomas.api.bookkeeping.v1.production_pb2 import Cell, DataSource, Production, Stage, WorkItem
from khomas.api.catalog.v1.catalog_service_pb2_grpc import CatalogServiceStub
from khomas.api.common.v1.event_pb2 import WatchEventsRequest
from khomas.api.common.v1.explanation_pb2 import Explanation
from khomas.api.scheduler.v1.state_pb2 import Reason
from khomas.bookkeeping.testing import Client, FakeScheduler, request_id, shower_grid, template, until
from khomas.catalog.files import Files
from khomas.catalog.testing import create, new_file
from khomas.kit.boundary.status import reason_of
from khomas.kit.errors import UpstreamUnavailable

NAME = "productions/showers"


def pause(name: str = NAME) -> pb.PauseProductionRequest:
    return pb.PauseProductionRequest(name=name, request_id=request_id())


def resume(name: str = NAME) -> pb.ResumeProductionRequest:
    return pb.ResumeProductionRequest(name=name, request_id=request_id())


def cancel(name: str = NAME) -> pb.CancelProductionRequest:
    return pb.CancelProductionRequest(name=name, reason="wrong angle", request_id=request_id())


def raised(requested: str, **fields: str) -> pb.UpdateProductionRequest:
    wanted = shower_grid(20, requested=requested, each="10")
    for key, value in fields.items():
        setattr(wanted, key, value)
    mask = FieldMask(paths=["stages.requested_events"])
    return pb.UpdateProductionRequest(production=wanted, update_mask=mask, request_id=request_id())


def two_files(**source: Any) -> Production:
    stage = Stage(name="reduce", job=template(), data=DataSource(directory="/raw", **source))
    return Production(name="productions/crab", stages=[stage])


async def refusal(call: Awaitable[Any]) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return reason_of(refused.value)


async def test_a_paused_production_makes_no_jobs_until_it_is_resumed(client: Client, scheduler: FakeScheduler) -> None:
    await client.begin(shower_grid(20, requested="100", each="10", max_active_jobs=1))
    first = await client.waiting(scheduler, 1)
    await client.stub.PauseProduction(pause())
    scheduler.finish(first)
    await client.cells_when(NAME, lambda cells: cells[0].progress.jobs_succeeded == 1)
    assert scheduler.waiting_count == 0
    await client.stub.ResumeProduction(resume())
    await client.waiting(scheduler, 1)


async def test_a_cancelled_production_cancels_its_jobs_and_stays_so(client: Client, scheduler: FakeScheduler) -> None:
    await client.begin(shower_grid(20, requested="100", each="10"))
    await client.waiting(scheduler, 10)
    made = await client.stub.CancelProduction(cancel())
    assert (made.state, made.message) == (Production.STATE_CANCELLED, "wrong angle")

    async def cancelled() -> list[str] | None:
        return scheduler.cancelled or None

    assert await until(cancelled) == list(scheduler.jobs)
    assert await refusal(client.stub.ResumeProduction(resume())) == "PRODUCTION_STATE"


async def test_watchers_are_told_that_the_work_items_of_a_cancelled_production_are_skipped(
    client: Client, catalog: CatalogServiceStub, scheduler: FakeScheduler
) -> None:
    await catalog.BatchCreateFiles(create(new_file("/raw/1"), new_file("/raw/2")))
    await client.begin(two_files())
    await client.waiting(scheduler, 2)
    await client.stub.CancelProduction(cancel("productions/crab"))
    request = WatchEventsRequest(filter='kind = "bookkeeping.item.changed"', until_now=True)
    last = {}
    async for batch in client.stub.WatchEvents(request):
        for event in batch.events:
            item = WorkItem()
            event.resource.Unpack(item)
            last[item.name] = item.state
    assert list(last.values()) == [WorkItem.STATE_SKIPPED] * 2


async def test_resuming_gives_new_tries_to_work_items(
    client: Client, catalog: CatalogServiceStub, scheduler: FakeScheduler
) -> None:
    await catalog.BatchCreateFiles(create(new_file("/raw/1")))
    await client.begin(two_files(max_tries=1))
    scheduler.finish(await client.waiting(scheduler, 1), reason=Reason.REASON_APP_SIGNAL)
    await client.in_state("productions/crab", Production.STATE_PAUSED)
    await client.stub.ResumeProduction(resume("productions/crab"))
    await client.waiting(scheduler, 1)


async def test_a_stage_that_is_flushed_before_its_files_were_listed_takes_them_first(
    client: Client, catalog: CatalogServiceStub, scheduler: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    await catalog.BatchCreateFiles(create(new_file("/raw/1"), new_file("/raw/2")))
    monkeypatch.setattr(Files, "stream", away)
    await client.begin(two_files(group_by="*", min_files=5))
    await client.stub.FlushStage(pb.FlushStageRequest(name="productions/crab", stage="reduce", request_id=request_id()))
    await asyncio.sleep(0.5)
    assert (await client.get("productions/crab")).state == Production.STATE_ACTIVE
    monkeypatch.undo()
    (job,) = await client.waiting(scheduler, 1)
    assert len(job.spec.inputs) == 2


def away(self: Files, request: Any) -> Any:
    raise UpstreamUnavailable(service="database")


async def test_a_flushed_stage_ends_with_what_is_there(
    client: Client, catalog: CatalogServiceStub, scheduler: FakeScheduler
) -> None:
    await catalog.BatchCreateFiles(create(new_file("/raw/1"), new_file("/raw/2")))
    await client.begin(two_files(group_by="*", min_files=5))

    async def grouped() -> list[WorkItem] | None:
        return list(await client.items("productions/crab")) or None

    await until(grouped)
    request = pb.FlushStageRequest(name="productions/crab", stage="reduce", request_id=request_id())
    await client.stub.FlushStage(request)
    (job,) = await client.waiting(scheduler, 1)
    assert [given.file for given in job.spec.inputs] == ["/raw/1", "/raw/2"]
    scheduler.finish([job])
    await client.in_state("productions/crab", Production.STATE_COMPLETED)


async def test_a_completed_production_goes_on_when_its_target_grows(client: Client, scheduler: FakeScheduler) -> None:
    await client.begin(shower_grid(20, requested="100", each="10"))
    scheduler.finish(await client.waiting(scheduler, 10))
    await client.in_state(NAME, Production.STATE_COMPLETED)
    again = await client.stub.UpdateProduction(raised("150"))
    assert (again.state, again.HasField("end_time")) == (Production.STATE_ACTIVE, False)
    scheduler.finish(await client.waiting(scheduler, 5))
    await client.in_state(NAME, Production.STATE_COMPLETED)
    (cell,) = await client.cells(NAME)
    assert (cell.state, cell.requested_events, cell.next_run_number) == (Cell.STATE_DONE, 150, 16)


async def test_a_target_never_shrinks(client: Client) -> None:
    await client.begin(shower_grid(20, requested="100", each="10"))
    assert await refusal(client.stub.UpdateProduction(raised("90"))) == "FIELD_INVALID"
    assert (await client.get(NAME)).progress.requested_events == 100


async def test_a_change_of_an_older_state_is_refused(client: Client) -> None:
    await client.begin(shower_grid(20, requested="100", each="10"))
    assert await refusal(client.stub.UpdateProduction(raised("200", etag="999"))) == "ETAG_MISMATCH"


async def test_what_failed_most_is_explained_with_an_example(client: Client, scheduler: FakeScheduler) -> None:
    await client.begin(shower_grid(20, requested="100", each="10"))
    jobs = await client.waiting(scheduler, 10)
    scheduler.finish(jobs[:1], reason=Reason.REASON_INFRA_LOST)
    scheduler.finish(jobs[1:], reason=Reason.REASON_APP_EXIT_CODE)
    await client.in_state(NAME, Production.STATE_PAUSED)
    answer = await client.stub.ExplainProduction(pb.ExplainProductionRequest(name=NAME))
    assert (answer.state, answer.reason) == ("PAUSED", "PAUSED")
    assert answer.summary.startswith("10 of the last 10 jobs of simulate failed")
    assert any("APP_EXIT_CODE (9 jobs)" in detail for detail in answer.details)
    assert [remedy.who for remedy in answer.remedies] == ["you", "you"]


async def test_an_active_production_explains_what_it_waits_for(client: Client) -> None:
    await client.begin(two_files())
    answer = await client.stub.ExplainProduction(pb.ExplainProductionRequest(name="productions/crab"))
    assert answer.reason == "WAIT_INPUT_DATA"
    assert answer.remedies[0].command == "khomas prod flush crab reduce"


async def test_work_item_explains_itself_from_its_first_file_to_its_last_try(
    client: Client, catalog: CatalogServiceStub, scheduler: FakeScheduler
) -> None:
    await catalog.BatchCreateFiles(create(new_file("/raw/1")))
    await client.begin(two_files(group_by="*", max_tries=1, min_files=5))

    async def item() -> WorkItem | None:
        return next(iter(await client.items("productions/crab")), None)

    async def explained() -> Explanation:
        return await client.stub.ExplainWorkItem(pb.ExplainWorkItemRequest(name=(await until(item)).name))

    growing = await explained()
    assert (growing.state, growing.reason) == ("GROUPED", "GROUP_GROWS")
    assert growing.remedies[0].command == "khomas prod flush crab reduce"
    await client.stub.FlushStage(pb.FlushStageRequest(name="productions/crab", stage="reduce", request_id=request_id()))
    (job,) = await client.waiting(scheduler, 1)
    assert ((await explained()).reason, (await explained()).remedies[0].command) == (
        "JOB_UNDER_WAY",
        f"khomas why {job.name}",
    )
    scheduler.finish([job], reason=Reason.REASON_APP_SIGNAL)
    await client.in_state("productions/crab", Production.STATE_PAUSED)
    failed = await explained()
    assert (failed.state, failed.reason) == ("MAX_TRIES", "MAX_TRIES")
    assert failed.summary.startswith("1 jobs have failed on 1 files")
    assert failed.HasField("since")
    assert [one.command for one in failed.remedies] == [f"khomas why {job.name}", "khomas prod resume crab"]


async def test_unknown_work_item_is_not_explained(client: Client) -> None:
    await client.begin(two_files())
    name = "productions/crab/stages/reduce/items/none"
    assert await refusal(client.stub.ExplainWorkItem(pb.ExplainWorkItemRequest(name=name))) == "WORK_ITEM_NOT_FOUND"
