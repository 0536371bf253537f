"""What is taken in, what is refused, and what a call costs."""

from uuid import uuid4

import grpc
import pytest
from google.protobuf.json_format import MessageToDict

from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.api.scheduler.v1.job_pb2 import Job
from khomas.api.scheduler.v1.job_spec_pb2 import JobSpec
from khomas.api.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceStub
from khomas.kit.boundary.call import current_call
from khomas.kit.boundary.status import info_of, reason_of, received_status
from khomas.kit.database import count_statements
from khomas.scheduler.testing import Scheduler, shell, states

FAR = {"limits": {"start_after": "2100-01-01T00:00:00Z"}}


def request_of(*specs: JobSpec, **options: bool) -> pb.BatchCreateJobsRequest:
    return pb.BatchCreateJobsRequest(jobs=[Job(spec=spec) for spec in specs], request_id=str(uuid4()), **options)


async def refusal(scheduler: Scheduler, *specs: JobSpec) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await scheduler.submit(*specs)
    info = info_of(received_status(caught.value))
    return caught.value.code(), info.reason, dict(info.metadata)


async def test_retry_with_same_request_id_returns_first_answer(scheduler: Scheduler) -> None:
    request = request_of(shell("true", **FAR))
    first = await scheduler.stub.BatchCreateJobs(request)
    assert await scheduler.stub.BatchCreateJobs(request) == first
    listed = await scheduler.stub.ListJobs(pb.ListJobsRequest())
    assert [job.name for job in listed.jobs] == [first.jobs[0].name]


@pytest.mark.parametrize("settings", [{"engine": False}])
async def test_thousand_jobs_cost_as_many_statements_as_one(scheduler: Scheduler) -> None:
    request = request_of(*[shell(f"echo {number}", **FAR) for number in range(1000)])
    with count_statements(scheduler.parts.database, current_call) as statements:
        answer = await scheduler.stub.BatchCreateJobs(request)
    assert len(answer.jobs) == 1000
    assert 0 < len(statements) <= 6, statements


@pytest.mark.parametrize("settings", [{"engine": False}])
async def test_thousand_names_cost_as_many_statements_as_one(scheduler: Scheduler) -> None:
    jobs = await scheduler.submit(*[shell("true", **FAR) for _ in range(1000)])
    names = [job.name for job in jobs]
    with count_statements(scheduler.parts.database, current_call) as statements:
        answer = await scheduler.stub.BatchGetJobs(pb.BatchGetJobsRequest(names=names, full=True))
    assert [result.job.name for result in answer.results] == names
    assert 0 < len(statements) <= 6, statements
    with count_statements(scheduler.parts.database, current_call) as statements:
        assert (await scheduler.cancel(*names)).cancelled == 1000
    assert 0 < len(statements) <= 6, statements


async def test_array_of_a_million_is_one_row(scheduler: Scheduler) -> None:
    [array] = await scheduler.submit(shell("true", splitter={"count": {"count": 1_000_000}}, **FAR))
    got = await scheduler.get(array.name)
    assert (got.counts.total, dict(got.counts.by_state)) == (1_000_000, {"PENDING": 1_000_000})
    child = await scheduler.get(f"{array.name}/999999")
    assert (child.index, child.parent, states([child])) == (999_999, array.name, ["PENDING"])
    assert (await scheduler.cancel(array.name)).cancelled == 1_000_000
    assert states([await scheduler.get(array.name)]) == ["CANCELLED"]


GRID = {"axes": [{"name": "z", "values": [1]}]}
DIVIDED = {"grid": {**GRID, "derived": [{"name": "x", "expression": "1 / (z - 1)"}]}}
ONE = {"inline_content": "eA==", "path": "a"}
NEVER_STORED = {"sandbox": {"sha256": "0" * 64, "name": "a"}}
OUTSIDE = {"inline_content": "eA==", "path": "../a"}
BAD_RULE = {"log_regex": "(", "action": "ACTION_RETRY"}


@pytest.mark.parametrize(
    ("spec", "reason", "metadata"),
    [
        (shell("echo {zenit}"), "EXPRESSION_INVALID", {"position": "5"}),
        (shell("echo {x}", splitter=DIVIDED), "EXPRESSION_INVALID", {"position": "0"}),
        (shell("true", placement={"backends": ["locl"]}), "BACKEND_UNKNOWN", {"backend": "locl", "nearest": "local"}),
        (shell("true", placement={"native": {"slurm": {"a": "b"}}}), "NATIVE_OPTION_UNKNOWN", {"backend": "slurm"}),
        (shell("true", resources={"cpu_milli": 10_000_000}), "NO_MATCH", {}),
        (shell("true", splitter={"count": {"count": 11}, "max_jobs": 10}), "TOO_MANY_JOBS", {"jobs": "11"}),
        (shell("true", splitter={"grid": {**GRID, "filter": "z > 1"}}), "NO_JOBS", {}),
        (shell("true", dependencies=[{"job": f"jobs/{uuid4()}"}]), "DEPENDENCY_INVALID", {}),
        (shell("true", inputs=[NEVER_STORED]), "SANDBOX_NOT_FOUND", {"sha256": "0" * 64}),
        (shell("true", inputs=[ONE, ONE]), "INPUT_PATH_CONFLICT", {"path": "a"}),
        (shell("true", inputs=[OUTSIDE]), "FIELD_INVALID", {"field": "jobs[0].spec.inputs[0].path"}),
        (shell("true", outputs=[{"glob": "/etc/*"}]), "FIELD_INVALID", {"field": "jobs[0].spec.outputs[0].glob"}),
        (shell("true", outputs=[{"glob": "a", "name_pattern": "/hess/../{file}"}]), "FIELD_INVALID", {}),
        (shell("true", retry={"rules": [BAD_RULE]}), "FIELD_INVALID", {}),
    ],
)
async def test_what_cannot_work_is_refused_with_its_reason(
    scheduler: Scheduler, spec: JobSpec, reason: str, metadata: dict[str, str]
) -> None:
    code, given, told = await refusal(scheduler, spec)
    assert code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)
    assert (given, metadata.items() <= told.items()) == (reason, True), told
    assert not (await scheduler.stub.ListJobs(pb.ListJobsRequest())).jobs


async def test_jobs_that_differ_in_their_platform_alone_are_each_looked_at(scheduler: Scheduler) -> None:
    elsewhere = shell("true", environment={"platform": "aarch64-el9"})
    _, given, _ = await refusal(scheduler, shell("true"), elsewhere)
    assert given == "NO_MATCH"


async def test_caller_may_write_only_where_the_token_says(scheduler: Scheduler) -> None:
    channel = scheduler.served.channel_for("compute.create", "storage.create:/hess/users/me")
    stub = SchedulerServiceStub(channel)
    mine = request_of(shell("true", outputs=[{"glob": "a", "name_pattern": "/hess/users/me/{file}"}], **FAR))
    assert (await stub.BatchCreateJobs(mine)).jobs
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.BatchCreateJobs(
            request_of(shell("true", outputs=[{"glob": "a", "name_pattern": "/hess/raw/{file}"}]))
        )
    assert reason_of(caught.value) == "CAPABILITY_MISSING"


async def test_plan_says_where_and_why_and_gives_scripts(scheduler: Scheduler) -> None:
    spec = shell("echo {index}", splitter={"count": {"count": 30}})
    answer = await scheduler.stub.BatchCreateJobs(request_of(spec, validate_only=True, render_scripts=True))
    [plan] = answer.plans
    assert (plan.backend, plan.jobs, len(plan.scripts)) == ("local", 30, 10)
    assert plan.why.startswith("local: rank 0.9 = priority 1 x success rate 0.900 (no recent jobs)")
    assert "it has 0 of at most 1000 jobs" in plan.why
    assert plan.scripts[3].content.startswith(b"#!/bin/sh")
    assert b"echo 3" in plan.scripts[3].content
    assert not (await scheduler.stub.ListJobs(pb.ListJobsRequest())).jobs


async def test_grid_gives_every_child_its_parameters(scheduler: Scheduler) -> None:
    grid = {
        "axes": [{"name": "zenith", "values": [0, 60]}, {"name": "seed", "range": {"first": 1, "last": 3}}],
        "derived": [{"name": "emin", "expression": "0.005 / cos(radians(zenith))"}],
    }
    [array] = await scheduler.run(shell("echo {zenith:02d} {seed} {emin:.3f}", splitter={"grid": grid}))
    children = await scheduler.children(array.name)
    assert [child.parameters["zenith"] + child.parameters["seed"] for child in children] == [
        "01",
        "02",
        "03",
        "601",
        "602",
        "603",
    ]
    assert await scheduler.log(children[5].name) == "60 3 0.010\n"


async def test_arguments_and_environment_of_a_set_are_added(scheduler: Scheduler) -> None:
    sets = [{"arguments": ["sh", "x"], "env": {"A": "1"}}, {"arguments": ["sh", "y"], "env": {"A": "2"}}]
    [array] = await scheduler.run(shell("echo $1 $A", splitter={"args": {"sets": sets}}))
    children = await scheduler.children(array.name)
    assert [await scheduler.log(child.name) for child in children] == ["x 1\n", "y 2\n"]


async def test_spec_comes_back_as_it_was_sent(scheduler: Scheduler) -> None:
    spec = shell("true", tags={"prod": "26"}, priority=3, display_name="a job", **FAR)
    [job] = await scheduler.submit(spec)
    got = await scheduler.get(job.name)
    assert MessageToDict(got.spec) == MessageToDict(spec)
    assert got.owner == "tester"
