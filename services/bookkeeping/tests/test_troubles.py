"""A production that goes wrong holds up no other."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import grpc
import pytest

from khomas.api.bookkeeping.v1.production_pb2 import DataSource, Production, Stage
from khomas.api.catalog.v1.catalog_service_pb2_grpc import CatalogServiceStub
from khomas.api.scheduler.v1 import scheduler_service_pb2 as scheduler_pb
from khomas.bookkeeping import checking
from khomas.bookkeeping.testing import Client, FakeScheduler, shower_grid, template
from khomas.catalog.testing import create, new_file
from khomas.kit.boundary.call import Context
from khomas.kit.filtering import MAX_COMPARISONS
from khomas.kit.testing import Served

Start = Callable[[], AbstractAsyncContextManager[Served]]


class Stumbling(FakeScheduler):
    """Breaks over the jobs of one production."""

    stumbles = True

    async def BatchCreateJobs(  # noqa: N802  the contract's name
        self, request: scheduler_pb.BatchCreateJobsRequest, context: Context
    ) -> scheduler_pb.BatchCreateJobsResponse:
        if self.stumbles and not request.validate_only and request.jobs[0].spec.tags["production"] == "cursed":
            await context.abort(grpc.StatusCode.INTERNAL, "a bug")
        return await super().BatchCreateJobs(request, context)


@pytest.fixture
def scheduler() -> Stumbling:
    return Stumbling()  # type: ignore[abstract]  # only what bookkeeping calls


async def test_others_go_on_and_so_does_it_when_it_can(start: Start, scheduler: Stumbling) -> None:
    cursed = shower_grid(20, requested="100", each="10")
    cursed.name = "productions/cursed"
    async with start() as served:
        client = Client(served.channel)
        await client.begin(cursed)
        await client.begin(shower_grid(20, requested="100", each="10"))
        await client.waiting(scheduler, 10)
        scheduler.finish(scheduler.waiting)
        await client.in_state("productions/showers", Production.STATE_COMPLETED)
        scheduler.stumbles = False
        await client.waiting(scheduler, 10)
        scheduler.finish(scheduler.waiting)
        await client.in_state("productions/cursed", Production.STATE_COMPLETED)


async def test_a_filter_that_the_catalogue_refuses_later_pauses_its_production_alone(
    client: Client, catalog: CatalogServiceStub, scheduler: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As of a production that was made when the catalogue took more.
    monkeypatch.setattr(checking, "_LEAST_ROOM", -1000)
    longest = " OR ".join(f'name = "/raw/{number}"' for number in range(MAX_COMPARISONS))
    await client.begin(of_files("cursed", longest))
    await client.begin(of_files("blessed"))
    await catalog.BatchCreateFiles(create(new_file("/raw/1")))
    (job,) = await client.waiting(scheduler, 1)
    assert job.origin == (await client.items("productions/blessed"))[0].name.rpartition("/")[2]
    paused = await client.in_state("productions/cursed", Production.STATE_PAUSED)
    assert "The catalogue refuses the files of reduce: FILTER_INVALID" in paused.message


def of_files(name: str, filter_text: str = "") -> Production:
    stage = Stage(name="reduce", job=template(), data=DataSource(directory="/raw", filter=filter_text))
    return Production(name=f"productions/{name}", stages=[stage])
