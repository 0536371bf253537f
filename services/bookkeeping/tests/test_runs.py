"""Observation runs, through the wire."""

from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from khomas.api.bookkeeping.v1 import bookkeeping_service_pb2 as pb
from khomas.api.bookkeeping.v1.run_pb2 import Run
from khomas.api.common.v1.value_pb2 import Value
from khomas.bookkeeping.testing import Client, request_id
from khomas.kit.boundary.call import current_call
from khomas.kit.boundary.status import reason_of
from khomas.kit.database import count_statements
from khomas.kit.testing import Served


@pytest.fixture
def poll() -> timedelta:
    """Nothing else runs statements."""
    return timedelta(hours=1)


def one_run(number: int, **facts: Any) -> Run:
    begin = Timestamp()
    begin.FromDatetime(datetime(2004, 12, 4, 22, number % 60, tzinfo=UTC))
    return Run(
        name=f"runs/{number}",
        target="Crab",
        period="2004-12",
        start_time=begin,
        files=[f"/hess/run_{number}.fits"],
        attributes={"zenith": Value(number=47.5)},
        **facts,
    )


def known(*runs: Run) -> pb.BatchCreateRunsRequest:
    return pb.BatchCreateRunsRequest(runs=runs, request_id=request_id())


def decided(**facts: Any) -> pb.UpdateRunRequest:
    run = Run(name="runs/23523", **facts)
    paths = [key for key in facts if key != "etag"]
    return pb.UpdateRunRequest(run=run, update_mask=FieldMask(paths=paths), request_id=request_id())


async def refusal(call: Awaitable[Any]) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return reason_of(refused.value)


async def test_a_run_is_read_as_it_was_made_known(client: Client) -> None:
    await client.stub.BatchCreateRuns(known(one_run(23523)))
    seen = await client.stub.GetRun(pb.GetRunRequest(name="runs/23523"))
    assert (seen.target, list(seen.files), seen.attributes["zenith"].number) == ("Crab", ["/hess/run_23523.fits"], 47.5)
    assert seen.start_time.ToDatetime() == datetime(2004, 12, 4, 22, 3)  # noqa: DTZ001


async def test_a_run_that_is_known_with_the_same_facts_is_no_error(client: Client) -> None:
    first = await client.stub.BatchCreateRuns(known(one_run(1)))
    again = await client.stub.BatchCreateRuns(known(one_run(2), one_run(1)))
    assert [one.name for one in again.runs] == ["runs/2", "runs/1"]
    assert again.runs[1].uid == first.runs[0].uid


async def test_a_run_that_is_known_with_other_facts_changes_nothing(client: Client) -> None:
    await client.stub.BatchCreateRuns(known(one_run(1)))
    call = client.stub.BatchCreateRuns(known(one_run(2), one_run(1, comment="clouds")))
    assert await refusal(call) == "RUN_EXISTS"
    assert len((await client.stub.ListRuns(pb.ListRunsRequest())).runs) == 1


async def test_decisions_about_the_quality_are_kept(client: Client) -> None:
    await client.stub.BatchCreateRuns(known(one_run(23523)))
    await client.stub.UpdateRun(decided(quality=Run.QUALITY_BAD, comment="clouds"))
    seen = await client.stub.UpdateRun(decided(quality=Run.QUALITY_LIMITED))
    assert (seen.quality, seen.comment) == (Run.QUALITY_LIMITED, "clouds")
    history = [(one.author, one.quality, one.comment) for one in seen.history]
    assert history == [("tester", Run.QUALITY_BAD, "clouds"), ("tester", Run.QUALITY_LIMITED, "clouds")]


async def test_a_name_or_an_older_state_cannot_be_changed(client: Client) -> None:
    await client.stub.BatchCreateRuns(known(one_run(23523)))
    assert await refusal(client.stub.UpdateRun(decided(target="Vela", etag="7"))) == "ETAG_MISMATCH"
    request = decided()
    request.update_mask.paths.append("start_time")
    assert await refusal(client.stub.UpdateRun(request)) == "FIELD_INVALID"


async def test_runs_are_searched_and_ordered(client: Client) -> None:
    bad = one_run(3, quality=Run.QUALITY_BAD)
    await client.stub.BatchCreateRuns(known(one_run(1), one_run(2, quality=Run.QUALITY_GOOD), bad))
    request = pb.ListRunsRequest(filter='quality != BAD AND period = "2004*"', order_by="start_time desc")
    assert [one.name for one in (await client.stub.ListRuns(request)).runs] == ["runs/2", "runs/1"]


async def test_a_thousand_runs_take_six_statements(client: Client, served: Served) -> None:
    runs = [one_run(number, quality=Run.QUALITY_GOOD) for number in range(1000)]
    with count_statements(served.services["bookkeeping"].parts, current_call) as statements:
        await client.stub.BatchCreateRuns(known(*runs))
    assert 0 < len(statements) <= 6, statements


async def test_a_missing_run_is_not_found(client: Client) -> None:
    assert await refusal(client.stub.GetRun(pb.GetRunRequest(name="runs/1"))) == "RUN_NOT_FOUND"
