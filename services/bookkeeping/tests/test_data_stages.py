"""Stages that work on files, through the wire, with a real catalogue."""

from collections.abc import Sequence
from uuid import uuid4

from khomas.api.bookkeeping.v1 import bookkeeping_service_pb2 as pb
from khomas.api.bookkeeping.v1.bookkeeping_service_pb2_grpc import BookkeepingServiceStub
from khomas.api.bookkeeping.v1.production_pb2 import DataSource, Production, Stage, WorkItem
from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.catalog.v1.catalog_service_pb2_grpc import CatalogServiceStub
from khomas.api.catalog.v1.dataset_pb2 import Dataset
from khomas.api.scheduler.v1.job_pb2 import Job, OutputFile
from khomas.api.scheduler.v1.job_spec_pb2 import Command, JobSpec, Output
from khomas.bookkeeping.testing import FakeScheduler
from khomas.catalog.testing import create, new_file
from khomas.kit.ids import new_uid

RAW = "datasets/raw"


def request_id() -> str:
    return str(uuid4())


def job(*arguments: str) -> JobSpec:
    return JobSpec(
        command=Command(executable="reduce", arguments=arguments),
        outputs=[Output(glob="*.fits", name_pattern="/out/{file}")],
    )


def reduce_and_merge() -> Production:
    reduce = Stage(name="reduce", job=job("{group}"), data=DataSource(dataset=RAW, complete_when_drained=True))
    merge = Stage(name="merge", job=job("all"), data=DataSource(group_by="*"), after=["reduce"])
    return Production(name="productions/crab", stages=[reduce, merge])


async def fill(catalog: CatalogServiceStub, *names: str) -> None:
    await catalog.CreateDataset(catalog_pb.CreateDatasetRequest(dataset=Dataset(name=RAW), request_id=request_id()))
    await catalog.BatchCreateFiles(create(*[new_file(name) for name in names], datasets=[RAW]))


async def close(catalog: CatalogServiceStub) -> None:
    await catalog.CloseDataset(catalog_pb.CloseDatasetRequest(name=RAW, request_id=request_id()))


async def begin(bookkeeping: BookkeepingServiceStub, wanted: Production) -> Production:
    request = pb.CreateProductionRequest(production=wanted, request_id=request_id())
    return (await bookkeeping.CreateProduction(request)).production


async def items(bookkeeping: BookkeepingServiceStub, name: str, stage: str = "") -> Sequence[WorkItem]:
    return (await bookkeeping.ListWorkItems(pb.ListWorkItemsRequest(production=name, stage=stage))).work_items


def reduced(job: Job) -> list[OutputFile]:
    return [OutputFile(name=f"/out/{job.uid}.fits", file_uid=new_uid())]


async def test_a_dataset_is_reduced_file_by_file_and_merged(
    bookkeeping: BookkeepingServiceStub, catalog: CatalogServiceStub, scheduler: FakeScheduler, until
) -> None:
    await fill(catalog, "/raw/1", "/raw/2", "/raw/3")
    await close(catalog)
    made = await begin(bookkeeping, reduce_and_merge())

    async def jobs(count: int) -> list[Job]:
        waiting = scheduler.waiting
        return waiting if len(waiting) == count else []

    first = await until(lambda: jobs(3))
    assert sorted(one.spec.inputs[0].file for one in first) == ["/raw/1", "/raw/2", "/raw/3"]
    scheduler.finish(first, outputs=reduced)
    (merge,) = await until(lambda: jobs(1))
    assert sorted(given.file for given in merge.spec.inputs) == sorted(f"/out/{one.uid}.fits" for one in first)
    scheduler.finish([merge])

    async def completed() -> Production | None:
        now = await bookkeeping.GetProduction(pb.GetProductionRequest(name=made.name))
        return now if now.state == Production.STATE_COMPLETED else None

    end = await until(completed)
    assert end.progress.jobs_succeeded == 4
    assert end.progress.items_processed == 4
    assert {one.state for one in await items(bookkeeping, made.name)} == {WorkItem.STATE_PROCESSED}
