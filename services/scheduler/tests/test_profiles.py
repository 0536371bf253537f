"""What jobs of a kind used, and what the next one gets."""

import asyncio
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from google.protobuf.json_format import ParseDict

from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.api.scheduler.v1.job_pb2 import Job
from khomas.api.scheduler.v1.job_spec_pb2 import JobSpec
from khomas.api.scheduler.v1.placement_pb2 import RetryRule
from khomas.api.scheduler.v1.state_pb2 import JobState
from khomas.scheduler.intake.profiles import Used, bucket_of, filled, kind_of_jobs, quantile
from khomas.scheduler.testing import Scheduler, shell
from khomas.scheduler.testing.backend import BatchSystem

GIB = 1 << 30


def spec_of(**fields: Any) -> JobSpec:
    return ParseDict({"tags": {"application": "kaskade", "version": "1.2"}, **fields}, JobSpec())


def used(numbers: dict[float, int], what: str = "memory_bytes", backend: str = "lyon") -> list[Used]:
    return [Used("kaskade/1.2", backend, what, bucket_of(size), number) for size, number in numbers.items()]


def test_kind_is_application_version_and_cell_else_the_name() -> None:
    assert kind_of_jobs(spec_of()) == "kaskade/1.2"
    tags = {"application": "kaskade", "cell": "za60"}
    assert kind_of_jobs(spec_of(tags=tags)) == "kaskade za60"
    assert kind_of_jobs(JobSpec(display_name="fit")) == "fit"


def test_quantile_is_right_to_two_percent() -> None:
    numbers: dict[int, int] = {}
    for step in range(1, 101):
        bucket = bucket_of(1e6 * step)
        numbers[bucket] = numbers.get(bucket, 0) + 1
    assert quantile(numbers, 0.99) == pytest.approx(99e6, rel=0.02)
    assert quantile(numbers, 0.5) == pytest.approx(50e6, rel=0.02)


def test_thirty_jobs_are_enough_and_twenty_nine_are_not() -> None:
    spec = spec_of(resources={"memoryBytes": 8 * GIB, "automatic": True})
    few = filled(spec, used({GIB: 29}), "lyon")
    assert (few.resources.memory_bytes, list(few.resources.estimated)) == (8 * GIB, [])
    enough = filled(spec, used({GIB: 30}), "lyon").resources
    assert enough.memory_bytes == pytest.approx(1.1 * GIB, rel=0.02)
    (one,) = enough.estimated
    assert (one.field, one.given, one.sample_size, one.profile) == ("memory_bytes", 8 * GIB, 30, "kaskade/1.2 at lyon")


def test_backend_with_too_few_jobs_takes_what_all_used() -> None:
    history = [*used({GIB: 20}), *used({2 * GIB: 20}, backend="namibia")]
    (one,) = filled(spec_of(), history, "lyon").resources.estimated
    assert (one.sample_size, one.profile) == (40, "kaskade/1.2")


def test_times_are_filled_in_and_limits_grow() -> None:
    made = filled(spec_of(), used({100: 40}, "wall_time"), "lyon")
    assert made.resources.wall_time.ToTimedelta() == pytest.approx(timedelta(seconds=111), abs=timedelta(seconds=2))
    assert made.retry.rules[-1].action == RetryRule.ACTION_GROW_AND_RETRY


async def test_history_fills_the_needs_and_the_dry_run_tells_from_how_many(
    with_system: Scheduler, system: BatchSystem
) -> None:
    spec = shell("true", displayName="fit", tags={"application": "fit", "version": "3"})
    jobs = await with_system.submit(*[spec] * 32)
    usage = {"wall_s": 60.0, "max_memory_bytes": GIB, "cpu_user_s": 50.0, "cpu_system_s": 1.0}
    async with asyncio.timeout(30):
        while len(system.submitted) < len(jobs):
            await asyncio.sleep(0.02)
    for token in system.going:
        system.end(token, usage=usage)
    for job in jobs:
        await with_system.wait(job.name, [JobState.JOB_STATE_SUCCEEDED])
    spec.resources.automatic = True
    request = pb.BatchCreateJobsRequest(jobs=[Job(spec=spec)], validate_only=True, request_id=str(uuid4()))
    async with asyncio.timeout(20):
        while not (plan := (await with_system.stub.BatchCreateJobs(request)).plans[0]).resources.estimated:
            await asyncio.sleep(0.05)
    assert {one.field: one.sample_size for one in plan.resources.estimated} == {
        "memory_bytes": 32,
        "wall_time": 32,
        "cpu_time": 32,
    }
    assert plan.resources.memory_bytes == pytest.approx(1.1 * GIB, rel=0.02)
    (real,) = await with_system.submit(spec)
    stored = (await with_system.get(real.name)).spec.resources
    assert stored.memory_bytes == plan.resources.memory_bytes
