"""Numbers and texts of a spec that would stop more than their own job."""

from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest

from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.api.scheduler.v1.job_pb2 import Job
from khomas.kit.boundary.status import received_status
from khomas.scheduler.testing import Scheduler, shell

TEN_YEARS = 3650 * 86400


async def objected(scheduler: Scheduler, **spec: Any) -> list[str]:
    """Fields that a submission is refused for."""
    jobs = [Job(spec=shell("true", **spec))]
    request = pb.BatchCreateJobsRequest(jobs=jobs, request_id=str(uuid4()), validate_only=True)
    try:
        await scheduler.stub.BatchCreateJobs(request)
    except grpc.aio.AioRpcError as error:
        status, found = received_status(error), BadRequest()
        assert status is not None
        assert any(detail.Unpack(found) for detail in status.details)
        return [one.field.removeprefix("jobs[0].spec.") for one in found.field_violations]
    return []


@pytest.mark.parametrize(
    "field",
    [
        "resources.wall_time",
        "resources.cpu_time",
        "limits.kill_grace",
        "limits.heartbeat_timeout",
        "limits.efficiency_window",
        "limits.slow_answer_time",
        "retain_after_end",
        "retry.initial_backoff",
        "retry.max_backoff",
    ],
)
async def test_times_are_ten_years_at_most(with_system: Scheduler, field: str) -> None:
    *outer, name = field.split(".")

    def within(seconds: int) -> dict[str, Any]:
        return {outer[0]: {name: f"{seconds}s"}} if outer else {name: f"{seconds}s"}

    assert await objected(with_system, **within(TEN_YEARS)) == []
    assert await objected(with_system, **within(TEN_YEARS + 1)) == [field]


@pytest.mark.parametrize(
    ("multiplier", "fields"), [(1, []), (100, []), (100.5, ["retry.multiplier"]), ("Infinity", ["retry.multiplier"])]
)
async def test_pauses_grow_a_hundredfold_at_most(with_system: Scheduler, multiplier: Any, fields: list[str]) -> None:
    assert await objected(with_system, retry={"multiplier": multiplier}) == fields


@pytest.mark.parametrize("name", ["grow_memory", "grow_wall"])
@pytest.mark.parametrize(("factor", "good"), [(0, True), (16, True), (16.5, False), (1e308, False), ("NaN", False)])
async def test_needs_grow_sixteenfold_at_most(with_system: Scheduler, name: str, factor: Any, good: bool) -> None:
    retry = {"rules": [{"action": "ACTION_GROW_AND_RETRY", name: factor}]}

    assert await objected(with_system, retry=retry) == ([] if good else [f"retry.rules[0].{name}"])


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"display_name": "a\0"}, "display_name"),
        ({"tags": {"a": "b\0"}}, "tags['a']"),
        ({"placement": {"queue": "a\0"}}, "placement.queue"),
        ({"placement": {"native": {"memory": {"a": "\0"}}}}, "placement.native['memory'].fields['a'].string_value"),
        ({"outputs": [{"glob": "*"}, {"glob": "a\0"}]}, "outputs[1].glob"),
        ({"splitter": {"args": {"sets": [{"arguments": ["a", "b\0"]}]}}}, "splitter.args.sets[0].arguments[1]"),
    ],
)
async def test_texts_have_no_sign_nul(with_system: Scheduler, spec: dict[str, Any], field: str) -> None:
    assert field in await objected(with_system, **spec)


async def test_contents_may_have_the_sign_nul(with_system: Scheduler) -> None:
    assert await objected(with_system, inputs=[{"path": "a", "inline_content": "AAAA"}]) == []
