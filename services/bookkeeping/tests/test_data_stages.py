"""Stages that work on files, through the wire, with a real catalogue."""

from typing import Any

from google.protobuf.duration_pb2 import Duration

from khomas.api.bookkeeping.v1.production_pb2 import DataSource, Production, Stage, WorkItem
from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.catalog.v1.catalog_service_pb2_grpc import CatalogServiceStub
from khomas.api.catalog.v1.dataset_pb2 import Dataset
from khomas.api.scheduler.v1.job_pb2 import Job, OutputFile
from khomas.api.scheduler.v1.state_pb2 import Reason
from khomas.bookkeeping.testing import Client, FakeScheduler, request_id, template, until
from khomas.catalog.testing import create, declare, new_file, value
from khomas.kit.ids import new_uid

RAW = "datasets/raw"


def reduce_and_merge() -> Production:
    reduce = Stage(name="reduce", job=template(), data=DataSource(dataset=RAW, complete_when_drained=True))
    merge = Stage(name="merge", job=template("all"), data=DataSource(group_by="*"), after=["reduce"])
    return Production(name="productions/crab", stages=[reduce, merge])


def by_run(**source: Any) -> Production:
    stage = Stage(name="reduce", job=template("{group:05d}"), data=DataSource(group_by="run", **source))
    return Production(name="productions/runs", stages=[stage])


async def fill(catalog: CatalogServiceStub, *names: str) -> None:
    await catalog.CreateDataset(catalog_pb.CreateDatasetRequest(dataset=Dataset(name=RAW), request_id=request_id()))
    await catalog.BatchCreateFiles(create(*[new_file(name) for name in names], datasets=[RAW]))


async def close(catalog: CatalogServiceStub) -> None:
    await catalog.CloseDataset(catalog_pb.CloseDatasetRequest(name=RAW, request_id=request_id()))


def reduced(job: Job) -> list[OutputFile]:
    return [OutputFile(name=f"/out/{job.uid}.fits", file_uid=new_uid())]


async def test_a_dataset_is_reduced_file_by_file_and_merged(
    client: Client, catalog: CatalogServiceStub, scheduler: FakeScheduler
) -> None:
    await fill(catalog, "/raw/1", "/raw/2", "/raw/3")
    await close(catalog)
    made = await client.begin(reduce_and_merge())
    first = await client.waiting(scheduler, 3)
    assert sorted(one.spec.inputs[0].file for one in first) == ["/raw/1", "/raw/2", "/raw/3"]
    scheduler.finish(first, outputs=reduced)
    (merge,) = await client.waiting(scheduler, 1)
    assert sorted(given.file for given in merge.spec.inputs) == sorted(f"/out/{one.uid}.fits" for one in first)
    scheduler.finish([merge])
    end = await client.in_state(made.name, Production.STATE_COMPLETED)
    assert end.progress.jobs_succeeded == 4
    assert end.progress.items_processed == 4
    assert {one.state for one in await client.items(made.name)} == {WorkItem.STATE_PROCESSED}


async def test_files_that_come_later_are_taken_in_until_the_dataset_is_closed(
    client: Client, catalog: CatalogServiceStub, scheduler: FakeScheduler
) -> None:
    await fill(catalog, "/raw/1")
    made = await client.begin(reduce_and_merge())
    scheduler.finish(await client.waiting(scheduler, 1))
    await catalog.BatchCreateFiles(create(new_file("/raw/2"), datasets=[RAW]))
    (second,) = await client.waiting(scheduler, 1)
    assert second.spec.inputs[0].file == "/raw/2"
    scheduler.finish([second], outputs=reduced)
    await close(catalog)
    scheduler.finish(await client.waiting(scheduler, 1))
    await client.in_state(made.name, Production.STATE_COMPLETED)


async def test_files_of_a_directory_are_grouped_by_metadata_filtered_and_matched(
    client: Client, catalog: CatalogServiceStub, scheduler: FakeScheduler
) -> None:
    await catalog.BatchCreateMetadataKeys(declare(run="INTEGER", good="BOOLEAN"))
    source = {"directory": "/mice", "match": "*.tar", "filter": "metadata.good = true", "min_files": 2}
    await catalog.BatchCreateFiles(create(new_file("/mice/7/a.tar", metadata={"run": 7, "good": True})))
    await client.begin(by_run(**source))
    await catalog.BatchCreateFiles(
        create(
            new_file("/mice/7/b.tar", metadata={"run": 7, "good": True}),
            new_file("/mice/7/bad.tar", metadata={"run": 7, "good": False}),
            new_file("/mice/7/log.txt", metadata={"run": 7, "good": True}),
            new_file("/mice/8/a.tar", metadata={"run": 8, "good": True}),
        )
    )
    (job,) = await client.waiting(scheduler, 1)
    assert [given.file for given in job.spec.inputs] == ["/mice/7/a.tar", "/mice/7/b.tar"]
    assert list(job.spec.command.arguments) == ["00007"]
    states = {one.group: one.state for one in await client.items("productions/runs")}
    assert states == {"7": WorkItem.STATE_ASSIGNED, "8": WorkItem.STATE_GROUPED}


async def test_a_small_group_is_submitted_after_flush_after(
    client: Client, catalog: CatalogServiceStub, scheduler: FakeScheduler
) -> None:
    await catalog.BatchCreateMetadataKeys(declare(run="INTEGER"))
    await catalog.BatchCreateFiles(create(new_file("/mice/a", metadata={"run": 7})))
    await client.begin(by_run(directory="/mice", min_files=2, flush_after=Duration(nanos=100_000_000)))
    (job,) = await client.waiting(scheduler, 1)
    assert [given.file for given in job.spec.inputs] == ["/mice/a"]


async def test_a_failed_item_gets_new_jobs_until_its_tries_are_used_up(
    client: Client, catalog: CatalogServiceStub, scheduler: FakeScheduler
) -> None:
    await fill(catalog, "/raw/1")
    wanted = reduce_and_merge()
    wanted.stages[0].data.max_tries = 2
    made = await client.begin(wanted)
    for _ in range(2):
        scheduler.finish(await client.waiting(scheduler, 1), reason=Reason.REASON_APP_EXIT_CODE)
    paused = await client.in_state(made.name, Production.STATE_PAUSED)
    assert "1 work items of reduce failed too often" in paused.message
    (item,) = await client.items(made.name)
    assert (item.state, item.tries, item.message) == (WorkItem.STATE_MAX_TRIES, 2, "APP_EXIT_CODE")


async def test_many_items_go_to_the_scheduler_in_few_calls(
    client: Client, catalog: CatalogServiceStub, scheduler: FakeScheduler
) -> None:
    await fill(catalog, *[f"/raw/{number}" for number in range(600)])
    await client.begin(reduce_and_merge())
    await client.waiting(scheduler, 600)
    assert len(scheduler.calls) == 2


async def test_a_file_whose_metadata_matches_later_is_taken_in_once(
    client: Client, catalog: CatalogServiceStub, scheduler: FakeScheduler
) -> None:
    await catalog.BatchCreateMetadataKeys(declare(run="INTEGER", good="BOOLEAN"))
    await client.begin(by_run(directory="/mice", filter="metadata.good = true"))
    await catalog.BatchCreateFiles(create(new_file("/mice/a", metadata={"run": 7})))
    for run in (7, 8):
        update = catalog_pb.MetadataUpdate(name="/mice/a", set={"good": value(True), "run": value(run)})
        request = catalog_pb.BatchUpdateMetadataRequest(updates=[update], request_id=request_id())
        await catalog.BatchUpdateMetadata(request)
        await client.waiting(scheduler, 1)
    assert len(await client.items("productions/runs")) == 1


async def test_an_item_whose_file_is_deleted_first_is_missing(
    client: Client, catalog: CatalogServiceStub, scheduler: FakeScheduler
) -> None:
    await catalog.BatchCreateMetadataKeys(declare(run="INTEGER"))
    await catalog.BatchCreateFiles(create(new_file("/mice/a", metadata={"run": 7})))
    await client.begin(by_run(directory="/mice", min_files=2))

    async def seen(state: WorkItem.State.ValueType) -> bool | None:
        return {one.state for one in await client.items("productions/runs")} == {state} or None

    await until(lambda: seen(WorkItem.STATE_GROUPED))
    request = catalog_pb.BatchDeleteFilesRequest(names=["/mice/a"], reason="broken", request_id=request_id())
    await catalog.BatchDeleteFiles(request)
    await until(lambda: seen(WorkItem.STATE_MISSING))
    assert not scheduler.jobs
