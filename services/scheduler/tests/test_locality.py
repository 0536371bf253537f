"""Jobs go where their input is."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf.json_format import ParseDict

from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.api.scheduler.v1.job_pb2 import Job
from khomas.api.scheduler.v1.job_spec_pb2 import JobSpec
from khomas.api.scheduler.v1.splitter_pb2 import FileSplitter
from khomas.kit.service import Host, Running, Service
from khomas.kit.testing import serve
from khomas.scheduler.app import migrate, start_with
from khomas.scheduler.config import BackendSettings, SchedulerSettings
from khomas.scheduler.placement.locality import local_share
from khomas.scheduler.placement.sites import Site, Sites
from khomas.scheduler.testing import Scheduler, shell
from khomas.scheduler.testing.backend import BatchSystem
from khomas.scheduler.testing.files import Files, memory_services

FAST = {"poll": 0.05, "initial_backoff": 0.05, "collect_after": 0.2, "find_pause": 0.1}


def test_share_is_of_the_bytes() -> None:
    files = [(300, {"lyon"}), (100, {"lyon", "kiel"}), (0, set[str]())]
    assert local_share(files) == (("kiel", 100 / 401), ("lyon", 400 / 401))


@pytest.fixture
def files() -> Files:
    files = Files(sites={"lyon-disk": "lyon", "kiel-disk": "kiel", "cloud": ""})
    for number in range(4):
        files.put(f"/hess/lyon_{number}", b"x" * 10, ["lyon-disk"])
        files.put(f"/hess/kiel_{number}", b"x" * 10, ["kiel-disk"])
    files.put("/hess/both", b"x" * 10, ["lyon-disk", "kiel-disk"])
    files.put("/hess/nowhere", b"x" * 10, ["cloud"])
    return files


@pytest.fixture
async def two_sites(tmp_path: Path, files: Files) -> AsyncIterator[Scheduler]:
    """Backends at Lyon and Kiel, both as good."""

    async def start(settings: SchedulerSettings, host: Host) -> Running:
        sites = [Site(name, BackendSettings(kind="memory", site=name), BatchSystem()) for name in ("kiel", "lyon")]
        return await start_with(settings, host, Sites(sites))

    scheduler = Service("scheduler", SchedulerSettings, start, migrate)
    services = (*memory_services(files), scheduler)
    async with serve(*services, state=tmp_path / "state", settings={"scheduler": FAST}) as served:
        yield Scheduler(served)


def reading(*names: str, **spec: Any) -> JobSpec:
    made = shell("true", **spec)
    for name in names:
        made.inputs.add(file=name)
    return made


async def placed(scheduler: Scheduler, job: Job) -> str:
    job = await scheduler.wait(job.name, range(5, 11))
    return job.attempts[-1].backend


async def test_job_goes_where_its_input_is(two_sites: Scheduler, files: Files) -> None:
    specs = [reading(f"/hess/{site}_{number}") for site in ("lyon", "kiel") for number in range(4)]
    jobs = await two_sites.submit(*specs)
    assert [await placed(two_sites, job) for job in jobs] == ["lyon"] * 4 + ["kiel"] * 4
    assert files.calls.count("ListStorageElements") == 1


async def test_why_tells_how_much_of_the_input_is_there(two_sites: Scheduler) -> None:
    spec = reading("/hess/lyon_0", "/hess/kiel_0", "/hess/lyon_1", limits={"startAfter": "2036-01-01T00:00:00Z"})
    (job,) = await two_sites.submit(spec)
    details = (await two_sites.stub.ExplainJob(pb.ExplainJobRequest(name=job.name))).details
    assert any(line.startswith("lyon: rank") and "67% of its input is there" in line for line in details)
    assert any(line.startswith("kiel rank") for line in details)


async def test_array_by_site_has_all_input_of_a_child_at_one_site(two_sites: Scheduler) -> None:
    spec = reading("/hess/lyon_0", "/hess/kiel_0", "/hess/both", "/hess/lyon_1", "/hess/nowhere", "/hess/kiel_1")
    spec.splitter.files.CopyFrom(FileSplitter(files_per_job=10, grouping=FileSplitter.GROUPING_BY_SITE))
    (array,) = await two_sites.submit(spec)
    assert array.counts.total == 3
    for child in range(3):
        await two_sites.wait(f"{array.name}/{child}", range(5, 11))
    children = sorted(await two_sites.children(array.name), key=lambda child: child.index)
    assert [sorted(child.attempts[-1].inputs) for child in children] == [
        ["/hess/both", "/hess/kiel_0", "/hess/kiel_1"],
        ["/hess/lyon_0", "/hess/lyon_1"],
        ["/hess/nowhere"],
    ]
    assert [child.attempts[-1].backend for child in children[:2]] == ["kiel", "lyon"]


async def test_files_at_no_common_site_are_refused_where_data_must_be_local(two_sites: Scheduler) -> None:
    spec = reading("/hess/lyon_0", "/hess/nowhere", placement={"requireDataLocal": True})
    spec.splitter.files.CopyFrom(FileSplitter(files_per_job=10, grouping=FileSplitter.GROUPING_BY_SITE))
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await two_sites.submit(spec)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "1 of 2 input files are at no common site, such as /hess/nowhere" in (error.value.details() or "")


async def test_dry_run_tells_the_ranks_of_the_others(two_sites: Scheduler) -> None:
    spec = ParseDict({"placement": {"exclude": ["kiel"]}}, JobSpec())
    spec.MergeFrom(shell("true"))
    request = pb.BatchCreateJobsRequest(jobs=[Job(spec=spec)], validate_only=True, request_id=str(uuid4()))
    (plan,) = (await two_sites.stub.BatchCreateJobs(request)).plans
    assert (plan.backend, list(plan.others)) == ("lyon", ["kiel excluded: excluded by the job"])
