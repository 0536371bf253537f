"""Productions beside the real catalogue, storage and scheduler."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from khomas.api.bookkeeping.v1 import bookkeeping_service_pb2 as pb
from khomas.api.bookkeeping.v1.production_pb2 import DataSource, GridSource, Production, Stage
from khomas.api.bookkeeping.v1.provenance_pb2 import Activity
from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.catalog.v1.adoption_pb2 import Adoption
from khomas.api.catalog.v1.catalog_service_pb2_grpc import CatalogServiceStub
from khomas.api.scheduler.v1.job_spec_pb2 import Command, JobSpec, Output
from khomas.api.scheduler.v1.splitter_pb2 import Axis, GridSplitter
from khomas.api.storage.v1 import rule_service_pb2 as rule_pb
from khomas.api.storage.v1 import storage_service_pb2 as storage_pb
from khomas.api.storage.v1.rule_pb2 import ReplicationRule
from khomas.api.storage.v1.rule_service_pb2_grpc import RuleServiceStub
from khomas.api.storage.v1.storage_element_pb2 import StorageElement
from khomas.api.storage.v1.storage_service_pb2_grpc import StorageServiceStub
from khomas.archive import tables as archive_tables
from khomas.archive.app import service as archive_service
from khomas.archive.testing import Archive
from khomas.bookkeeping.app import service
from khomas.bookkeeping.testing import Client, request_id, until
from khomas.catalog.app import service as catalog_service
from khomas.kit.boundary.status import reason_of
from khomas.kit.events import EventLog
from khomas.kit.service import Service
from khomas.kit.testing import Served, serve
from khomas.scheduler.app import service as scheduler_service
from khomas.storage import tables as storage_tables
from khomas.storage.app import service as storage_service

FAST = {"poll": 0.05}


def shell(script: str, pattern: str, name: str) -> JobSpec:
    return JobSpec(
        command=Command(executable="/bin/sh", arguments=["-c", script]),
        outputs=[Output(glob=pattern, name_pattern=name)],
    )


def simulate_and_merge() -> Production:
    zenith = Axis(name="zenith")
    zenith.values.add(number_value=20)
    zenith.values.add(number_value=40)
    simulate = Stage(
        name="simulate",
        job=shell("echo {zenith} {seed} > {zenith}_{run_number}.txt", "*.txt", "/sim/{file}"),
        grid=GridSource(grid=GridSplitter(axes=[zenith]), requested_events="20", events_per_job="10"),
    )
    merge = Stage(
        name="merge",
        job=shell("cat in/* > all.dat", "all.dat", "/merged/{file}"),
        data=DataSource(group_by="*", path="in"),
        after=["simulate"],
    )
    return Production(name="productions/sim", stages=[simulate, merge])


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    services = (catalog_service, storage_service, scheduler_service, archive_service, service)
    settings = {one.name: FAST for one in services}
    settings["scheduler"] = {**FAST, "collect_after": 0.2}
    async with serve(*services, state=tmp_path / "state", settings=settings) as running:
        yield running


def copy_runs() -> Production:
    reduce = Stage(
        name="reduce",
        job=shell("cp {file} {input_stem}.dat", "*.dat", "/reduced/{file}"),
        data=DataSource(dataset="datasets/raw", match="*.txt", complete_when_drained=True),
    )
    reduce.job.outputs[0].datasets.append("datasets/reduced")
    return Production(name="productions/copy", stages=[reduce])


async def adopt(served: Served) -> str:
    """Take a tree of two runs in where it lies, and return the uid of the adoption."""
    catalog = CatalogServiceStub(served.channel)
    tree = served.state / "storage" / "local" / "runs"
    tree.mkdir(parents=True)
    for run in ("run_1.txt", "run_2.txt"):
        (tree / run).write_text(run)
    wanted = Adoption(storage_element="local", path="runs", destination="/raw", dataset="datasets/raw")
    request = catalog_pb.CreateAdoptionRequest(adoption=wanted, request_id=request_id())
    name = (await catalog.CreateAdoption(request)).name

    async def adopted() -> bool | None:
        found = await catalog.GetAdoption(catalog_pb.GetAdoptionRequest(name=name))
        return found.state == Adoption.STATE_SUCCEEDED or None

    await until(adopted)
    await catalog.CloseDataset(catalog_pb.CloseDatasetRequest(name="datasets/raw", request_id=request_id()))
    return name.removeprefix("adoptions/")


async def test_a_release_is_traced_to_the_adoption_of_its_raw_files(served: Served) -> None:
    client = Client(served.channel)
    adoption = await adopt(served)
    await client.begin(copy_runs())
    await client.in_state("productions/copy", Production.STATE_COMPLETED)
    archive = Archive(served)
    await archive.create("releases/crab/1", "datasets/reduced")
    await archive.settled("releases/crab/1")

    async def traced() -> set[str] | None:
        try:
            trace = await client.stub.GetTrace(pb.GetTraceRequest(id="releases/crab/1"))
        except grpc.aio.AioRpcError as error:
            if reason_of(error) != "TRACE_NOT_FOUND":
                raise
            return None
        return {node.name for node in trace.nodes}

    names = await until(traced)
    assert {"/reduced/run_1.dat", "/reduced/run_2.dat", "/raw/run_1.txt", "/raw/run_2.txt"} <= names
    assert f"adoptions/{adoption}" in names
    (adopted,) = (await client.stub.ListActivities(pb.ListActivitiesRequest(filter="kind = adoption"))).activities
    assert adopted.agent == "tester"
    forward = pb.GetTraceRequest(id=adoption, direction=pb.GetTraceRequest.DIRECTION_FORWARD)
    assert "releases/crab/1" in {node.name for node in (await client.stub.GetTrace(forward)).nodes}
    assert await subject(client, "crab/1") == "releases/crab/1"
    assert await subject(client, "copy") == "productions/copy"


async def subject(client: Client, id_: str) -> str:
    """Ask what an id means; the raw file of the first run has to be on the way."""
    trace = await client.stub.GetTrace(pb.GetTraceRequest(id=id_))
    assert "/raw/run_1.txt" in {node.name for node in trace.nodes}, id_
    assert trace.nodes[0].name == trace.subject
    return trace.subject


async def replicated(served: Served, mirror: Path) -> ReplicationRule:
    """Have the files of a dataset copied to another StorageElement, and return the rule for that."""
    element = StorageElement(name="storageElements/mirror", media=StorageElement.MEDIA_DISK)
    element.access_points.add(protocol="posix", address=str(mirror))
    made = storage_pb.CreateStorageElementRequest(storage_element=element, request_id=request_id())
    await StorageServiceStub(served.channel).CreateStorageElement(made)
    rules = RuleServiceStub(served.channel)
    wanted = ReplicationRule(dataset="datasets/raw", expression="mirror", copies=1)
    rule = await rules.CreateRule(rule_pb.CreateRuleRequest(rule=wanted, request_id=request_id()))

    async def satisfied() -> bool | None:
        return (await rules.GetRule(rule_pb.GetRuleRequest(name=rule.name))).counts.ok_copies == 1 or None

    await until(satisfied)
    return rule


async def test_a_copy_leads_to_its_transfer_and_rule_and_every_one_of_them_to_the_file(
    served: Served, tmp_path: Path
) -> None:
    client, source, mirror = Client(served.channel), tmp_path / "run_1.txt", tmp_path / "mirror"
    source.write_text("run 1")
    mirror.mkdir()
    await Archive(served).store("datasets/raw", {"/raw/run_1.txt": source})
    rule = await replicated(served, mirror)

    trace = await client.stub.GetTrace(pb.GetTraceRequest(id="/raw/run_1.txt"))

    edges = {(getattr(edge, "from"), edge.relation): edge.to for edge in trace.edges}
    transfer = edges["storageElements/mirror:raw/run_1.txt", "was generated by"]
    assert ("storageElements/local:raw/run_1.txt", "was generated by") not in edges
    assert (edges[transfer, "used"], edges[transfer, "made for"]) == ("/raw/run_1.txt", rule.name)
    get = catalog_pb.GetDatasetRequest(name="datasets/raw")
    dataset = await CatalogServiceStub(served.channel).GetDataset(get)
    names = {
        transfer: [transfer, transfer.removeprefix("transfers/")],
        rule.name: [rule.name, rule.name.removeprefix("replicationRules/")],
        dataset.name: [dataset.name, "raw", dataset.uid],
    }
    assert {name: [await subject(client, id_) for id_ in ids] for name, ids in names.items()} == {
        name: [name] * len(ids) for name, ids in names.items()
    }


async def test_a_file_that_was_put_and_its_upload_lead_to_each_other(served: Served, tmp_path: Path) -> None:
    client, source = Client(served.channel), tmp_path / "run_1.txt"
    source.write_text("run 1")
    await Archive(served).store("datasets/raw", {"/raw/run_1.txt": source})

    async def recorded() -> Activity | None:
        listed = await client.stub.ListActivities(pb.ListActivitiesRequest(filter="kind = upload"))
        return next(iter(listed.activities), None)

    activity = await until(recorded)
    assert activity.agent == "tester"
    upload = activity.name.replace("activities/", "uploads/")
    made = ("/raw/run_1.txt", upload, "was generated by")
    back = await client.stub.GetTrace(pb.GetTraceRequest(id="/raw/run_1.txt"))
    forward = pb.GetTraceRequest(id=upload, direction=pb.GetTraceRequest.DIRECTION_FORWARD)
    for trace in (back, await client.stub.GetTrace(forward)):
        assert made in [(getattr(edge, "from"), edge.to, edge.relation) for edge in trace.edges]
    assert back.nodes[0].facts["owner"] == "tester"


async def test_events_are_simulated_merged_and_traced(served: Served) -> None:
    client = Client(served.channel)
    made = await client.begin(simulate_and_merge())
    end = await client.in_state(made.name, Production.STATE_COMPLETED)
    assert end.progress.produced_events == 40
    assert end.progress.jobs_succeeded == 5
    request = catalog_pb.ListFilesRequest(directory="/sim", view=catalog_pb.FILE_VIEW_BASIC)
    simulated = [file.name for file in (await CatalogServiceStub(served.channel).ListFiles(request)).files]
    assert simulated == ["/sim/20_1.txt", "/sim/20_2.txt", "/sim/40_1.txt", "/sim/40_2.txt"]
    trace = await client.stub.GetTrace(pb.GetTraceRequest(id="/merged/all.dat"))
    by_kind: dict[str, list[str]] = {}
    for node in trace.nodes:
        by_kind.setdefault(node.kind, []).append(node.name)
    assert sorted(by_kind["file"]) == ["/merged/all.dat", *simulated]
    assert len(by_kind["attempt"]) == len(by_kind["job"]) == 5
    assert by_kind["production"] == ["productions/sim"]
    assert len(by_kind["cell"]) == 2
    assert all(node.summary for node in trace.nodes)


async def test_provenance_goes_on_after_events_were_missed(tmp_path: Path) -> None:
    """Bookkeeping is away for longer than the others keep their events."""
    others = (catalog_service, storage_service, scheduler_service, archive_service)
    settings = {one.name: FAST for one in (*others, service)}
    content = tmp_path / "1.dat"
    content.write_text("1")

    def serving(*services: Service[Any]) -> AbstractAsyncContextManager[Served]:
        return serve(*services, state=tmp_path / "state", settings={one.name: settings[one.name] for one in services})

    async with serving(*others, service) as served:
        await released(Archive(served), "first", content)
        await until(lambda: recorded(served, "upload", 1))
        await until(lambda: recorded(served, "release", 1))
    async with serving(*others) as served:
        await released(Archive(served), "missed", content)
        for name, tables in (("storage", storage_tables), ("archive", archive_tables)):
            await EventLog(served.services[name].parts.database, tables.event, retention=timedelta()).prune()
    async with serving(*others, service) as served:
        await until(lambda: recorded(served, "release", 2))
        await released(Archive(served), "last", content)
        await until(lambda: recorded(served, "upload", 2))
        await until(lambda: recorded(served, "release", 3))


async def released(archive: Archive, name: str, content: Path) -> None:
    """Upload a file and release it."""
    await archive.store(f"datasets/{name}", {f"/{name}/1.dat": content})
    await archive.create(f"releases/{name}/1", f"datasets/{name}")
    await archive.settled(f"releases/{name}/1")


async def recorded(served: Served, kind: str, count: int) -> bool | None:
    """Tell whether so many activities of a kind are known."""
    request = pb.ListActivitiesRequest(filter=f"kind = {kind}")
    return len((await Client(served.channel).stub.ListActivities(request)).activities) == count or None
