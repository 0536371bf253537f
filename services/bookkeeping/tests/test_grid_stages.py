"""Stages with a target of events, through the wire."""

from khomas.api.bookkeeping.v1 import bookkeeping_service_pb2 as pb
from khomas.api.bookkeeping.v1.production_pb2 import Cell, Production
from khomas.api.scheduler.v1.state_pb2 import Reason
from khomas.bookkeeping.testing import Client, FakeScheduler, request_id, shower_grid


async def test_lost_events_are_made_up_for_and_no_number_is_used_twice(
    client: Client, scheduler: FakeScheduler
) -> None:
    made = await client.begin(shower_grid(20, 40, requested="1000", each="10"))
    first = await client.waiting(scheduler, 200)
    scheduler.finish(first[:7], reason=Reason.REASON_INFRA_LOST)
    scheduler.finish(first[7:107], events=9)
    scheduler.finish(first[107:])
    while (now := await client.get(made.name)).state != Production.STATE_COMPLETED:
        scheduler.finish(scheduler.waiting)
    assert now.progress.lost_events == 70
    cells = await client.cells(made.name)
    assert all(one.progress.produced_events >= 1000 and one.state == Cell.STATE_DONE for one in cells)
    sets = [one.parameters for job in scheduler.jobs.values() for one in job.spec.splitter.args.sets]
    assert len({one["seed"] for one in sets}) == len(sets) == now.progress.jobs_total
    numbers = [(one["zenith"], one["run_number"]) for one in sets]
    assert len(set(numbers)) == len(numbers)


async def test_no_more_jobs_are_made_than_may_be_active(client: Client, scheduler: FakeScheduler) -> None:
    made = await client.begin(shower_grid(20, 40, requested="1000", each="10", max_active_jobs=30))
    scheduler.finish((await client.waiting(scheduler, 30))[:10])
    await client.cells_when(made.name, lambda cells: sum(one.progress.jobs_total for one in cells) == 40)
    await client.waiting(scheduler, 30)


async def test_a_broken_release_pauses_the_production(client: Client, scheduler: FakeScheduler) -> None:
    made = await client.begin(shower_grid(20, requested="1000", each="10"))
    jobs = await client.waiting(scheduler, 100)
    scheduler.finish(jobs[:9])
    scheduler.finish(jobs[9:20], reason=Reason.REASON_APP_EXIT_CODE)
    paused = await client.in_state(made.name, Production.STATE_PAUSED)
    assert "11 of the last 20 jobs of simulate failed" in paused.message


async def test_a_cell_is_given_up_after_its_maximum_of_jobs(client: Client, scheduler: FakeScheduler) -> None:
    wanted = shower_grid(20, requested="100", each="10", pause_above_failure_rate=1)
    wanted.stages[0].grid.max_jobs_per_cell = 11
    made = await client.begin(wanted)
    jobs = await client.waiting(scheduler, 10)
    scheduler.finish(jobs[:8])
    scheduler.finish(jobs[8:], reason=Reason.REASON_APP_EXIT_CODE)
    scheduler.finish(await client.waiting(scheduler, 1))
    failed = await client.in_state(made.name, Production.STATE_FAILED)
    assert failed.message == "1 cells of simulate were given up after their maximum of jobs."


async def test_an_event_that_is_told_again_counts_once(client: Client, scheduler: FakeScheduler) -> None:
    made = await client.begin(shower_grid(20, requested="100", each="10"))
    jobs = scheduler.finish((await client.waiting(scheduler, 10))[:9])
    scheduler.tell(jobs)
    scheduler.finish(scheduler.waiting)
    end = await client.in_state(made.name, Production.STATE_COMPLETED)
    assert end.progress.produced_events == 100
    assert end.progress.jobs_succeeded == 10


async def test_planning_alone_makes_nothing(client: Client, scheduler: FakeScheduler) -> None:
    request = pb.CreateProductionRequest(
        production=shower_grid(60, 20, requested="2e8", each="29999.58 * cos(radians(zenith)) ** -1.2"),
        validate_only=True,
        request_id=request_id(),
    )
    answer = await client.stub.CreateProduction(request)
    assert answer.cells[0].progress.jobs_to_go == 2902
    assert list(answer.cells[0].columns) == ["zenith", "emin"]
    assert not (await client.stub.ListProductions(pb.ListProductionsRequest())).productions
    assert not scheduler.jobs
