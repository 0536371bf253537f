"""Files that are deleted before a job gets them, and those that come back, with a real catalogue."""

from unittest.mock import AsyncMock

import pytest
from google.protobuf.duration_pb2 import Duration
from sqlalchemy import select

from khomas.api.bookkeeping.v1.production_pb2 import DataSource, Production, Stage, WorkItem
from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.catalog.v1.catalog_service_pb2_grpc import CatalogServiceStub
from khomas.api.catalog.v1.dataset_pb2 import Dataset
from khomas.api.scheduler.v1.job_pb2 import Job, OutputFile
from khomas.bookkeeping.intake import Intake
from khomas.bookkeeping.tables import arrival
from khomas.bookkeeping.testing import Client, FakeScheduler, request_id, template, until
from khomas.catalog.testing import create, new_file
from khomas.kit.testing import Served

RAW = "datasets/raw"
NAME = "productions/stack"
FILES = [f"/raw/{number}" for number in range(10)]


def stack(source: DataSource) -> Production:
    return Production(name=NAME, stages=[Stage(name="stack", job=template("all"), data=source)])


FROM_DATASET = DataSource(dataset=RAW, group_by="*", complete_when_drained=True)


async def fill(catalog: CatalogServiceStub) -> None:
    await catalog.CreateDataset(catalog_pb.CreateDatasetRequest(dataset=Dataset(name=RAW), request_id=request_id()))
    await catalog.BatchCreateFiles(create(*[new_file(name) for name in FILES], datasets=[RAW]))


async def close(catalog: CatalogServiceStub) -> None:
    await catalog.CloseDataset(catalog_pb.CloseDatasetRequest(name=RAW, request_id=request_id()))


async def delete(catalog: CatalogServiceStub, *names: str) -> None:
    await catalog.BatchDeleteFiles(
        catalog_pb.BatchDeleteFilesRequest(names=names, reason="broken", request_id=request_id())
    )


async def undelete(catalog: CatalogServiceStub, *names: str) -> None:
    await catalog.BatchUndeleteFiles(catalog_pb.BatchUndeleteFilesRequest(names=names, request_id=request_id()))


async def items_by_state(client: Client) -> dict[int, list[str]]:
    return {one.state: list(one.files) for one in await client.items(NAME)}


async def grouped(client: Client, *names: str) -> None:
    """Wait until these files, and no others, are in the group that grows."""

    async def seen() -> bool | None:
        return (await items_by_state(client)).get(WorkItem.STATE_GROUPED) == list(names) or None

    await until(seen)


def inputs(job: Job) -> list[str]:
    return [given.file for given in job.spec.inputs]


async def test_a_group_that_loses_a_file_goes_on_with_the_others_and_shows_the_loss(
    client: Client, catalog: CatalogServiceStub, scheduler: FakeScheduler
) -> None:
    await fill(catalog)
    await client.begin(stack(FROM_DATASET))
    await grouped(client, *FILES)
    await delete(catalog, "/raw/3", "/raw/4")
    rest = [name for name in FILES if name not in ("/raw/3", "/raw/4")]
    await grouped(client, *rest)
    await close(catalog)
    (job,) = await client.waiting(scheduler, 1)
    assert inputs(job) == rest
    assert (await items_by_state(client))[WorkItem.STATE_MISSING] == ["/raw/3", "/raw/4"]
    scheduler.finish([job])
    end = await client.in_state(NAME, Production.STATE_COMPLETED)
    assert end.message == "2 files were deleted before a job got them."


async def test_a_file_of_a_dataset_that_is_undeleted_is_taken_in_again(
    client: Client, catalog: CatalogServiceStub, scheduler: FakeScheduler
) -> None:
    await fill(catalog)
    await client.begin(stack(FROM_DATASET))
    await grouped(client, *FILES)
    await delete(catalog, *FILES[1:])
    await grouped(client, "/raw/0")
    await undelete(catalog, *FILES[1:])
    await grouped(client, *FILES)
    await close(catalog)
    (job,) = await client.waiting(scheduler, 1)
    assert inputs(job) == FILES
    scheduler.finish([job])
    end = await client.in_state(NAME, Production.STATE_COMPLETED)
    assert (end.message, end.progress.input_files) == ("", 10)


async def test_a_file_of_a_directory_that_is_undeleted_is_taken_in_again(
    client: Client, catalog: CatalogServiceStub
) -> None:
    await fill(catalog)
    await delete(catalog, "/raw/5")
    await client.begin(stack(DataSource(directory="/raw", group_by="*", settle=Duration(seconds=600))))
    await grouped(client, *(name for name in FILES if name != "/raw/5"))
    await undelete(catalog, "/raw/5")
    await grouped(client, *FILES)


async def test_outputs_that_are_deleted_and_undeleted_are_merged(
    client: Client, catalog: CatalogServiceStub, scheduler: FakeScheduler
) -> None:
    await fill(catalog)
    reduce = Stage(name="reduce", job=template(), data=DataSource(dataset=RAW, complete_when_drained=True))
    merge = Stage(name="merge", job=template("all"), data=DataSource(group_by="*"), after=["reduce"])
    await client.begin(Production(name=NAME, stages=[reduce, merge]))
    jobs = await client.waiting(scheduler, 10)
    names = {job.uid: f"/out/{number}" for number, job in enumerate(jobs)}
    await catalog.BatchCreateFiles(create(*[new_file(name) for name in names.values()]))
    made = await catalog.BatchGetFiles(catalog_pb.BatchGetFilesRequest(names=list(names.values())))
    uids = {result.file.name: result.file.uid for result in made.results}

    def outputs(job: Job) -> list[OutputFile]:
        return [OutputFile(name=names[job.uid], file_uid=uids[names[job.uid]])]

    scheduler.finish(jobs, outputs=outputs)
    await grouped(client, *sorted(uids))
    await delete(catalog, "/out/3")
    await grouped(client, *(name for name in sorted(uids) if name != "/out/3"))
    await undelete(catalog, "/out/3")
    await grouped(client, *sorted(uids))
    await close(catalog)
    (job,) = await client.waiting(scheduler, 1)
    assert inputs(job) == sorted(uids)


async def test_a_file_that_is_deleted_before_anybody_looked_at_it_gets_no_job(
    served: Served,
    client: Client,
    catalog: CatalogServiceStub,
    scheduler: FakeScheduler,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await catalog.BatchCreateFiles(create(new_file("/raw/listed"), new_file("/raw/good")))
    monkeypatch.setattr(Intake, "_take_all", AsyncMock())
    await client.begin(stack(DataSource(directory="/raw")))
    await told_of(served, "/raw/listed")
    await catalog.BatchCreateFiles(create(new_file("/raw/told")))
    await told_of(served, "/raw/told")
    await delete(catalog, "/raw/listed", "/raw/told")
    await told_of(served, "/raw/listed", "/raw/told", there=False)
    monkeypatch.undo()
    (job,) = await client.waiting(scheduler, 1)
    assert inputs(job) == ["/raw/good"]
    await undelete(catalog, "/raw/listed", "/raw/told")
    jobs = await client.waiting(scheduler, 3)
    assert sorted(inputs(job) for job in jobs) == [["/raw/good"], ["/raw/listed"], ["/raw/told"]]


async def told_of(served: Served, *names: str, there: bool = True) -> None:
    """Wait until all, or none, of these files wait to be looked at."""
    database = served.services["bookkeeping"].parts
    query = select(arrival.c.file).where(arrival.c.file.in_(names))

    async def seen() -> bool | None:
        async with database.read() as connection:
            found = set((await connection.execute(query)).scalars())
        return found == (set(names) if there else set()) or None

    await until(seen)
