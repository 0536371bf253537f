"""Productions beside the real catalogue, storage and scheduler."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from khomas.api.bookkeeping.v1 import bookkeeping_service_pb2 as pb
from khomas.api.bookkeeping.v1.production_pb2 import DataSource, GridSource, Production, Stage
from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.catalog.v1.catalog_service_pb2_grpc import CatalogServiceStub
from khomas.api.scheduler.v1.job_spec_pb2 import Command, JobSpec, Output
from khomas.api.scheduler.v1.splitter_pb2 import Axis, GridSplitter
from khomas.bookkeeping.app import service
from khomas.bookkeeping.testing import Client
from khomas.catalog.app import service as catalog_service
from khomas.kit.testing import Served, serve
from khomas.scheduler.app import service as scheduler_service
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
    services = (catalog_service, storage_service, scheduler_service, service)
    settings = {one.name: FAST for one in services}
    settings["scheduler"] = {**FAST, "collect_after": 0.2}
    async with serve(*services, state=tmp_path / "state", settings=settings) as running:
        yield running


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
