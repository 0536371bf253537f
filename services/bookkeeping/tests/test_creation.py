"""What CreateProduction refuses, and what it answers when it is asked again."""

from pathlib import Path

import grpc
import pytest

from khomas.api.bookkeeping.v1 import bookkeeping_service_pb2 as pb
from khomas.api.bookkeeping.v1.production_pb2 import DataSource, Production, Stage
from khomas.api.scheduler.v1.splitter_pb2 import CountSplitter, Splitter
from khomas.bookkeeping.testing import Client, FakeScheduler, request_id, shower_grid, template
from khomas.kit.boundary.status import reason_of
from khomas.kit.testing import Served


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """What is refused never reaches the database."""
    return f"sqlite+aiosqlite:///{tmp_path / 'bookkeeping.sqlite'}"


def chain(**after: list[str]) -> Production:
    source = DataSource(directory="/raw")
    stages = [Stage(name=name, job=template(), data=source, after=before) for name, before in after.items()]
    return Production(name="productions/chain", stages=stages)


async def refusal(client: Client, wanted: Production) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await client.begin(wanted)
    assert not (await client.stub.ListProductions(pb.ListProductionsRequest())).productions
    return reason_of(refused.value), refused.value.details() or ""


async def test_stages_in_a_circle_are_refused(client: Client) -> None:
    reason, message = await refusal(client, chain(a=["b"], b=["a"]))
    assert (reason, message) == ("STAGES_INVALID", "a comes after itself; break the cycle.")


async def test_an_unknown_stage_before_is_refused(client: Client) -> None:
    reason, message = await refusal(client, chain(a=["x"]))
    assert (reason, message) == ("STAGES_INVALID", "a comes after x, but there is no such stage.")


async def test_a_stage_without_files_is_refused(client: Client) -> None:
    wanted = Production(name="productions/x", stages=[Stage(name="a", job=template(), data=DataSource())])
    assert (await refusal(client, wanted))[0] == "STAGES_INVALID"


async def test_a_splitter_in_a_template_is_refused(client: Client) -> None:
    wanted = chain(a=[])
    wanted.stages[0].job.splitter.CopyFrom(Splitter(count=CountSplitter(count=2)))
    assert (await refusal(client, wanted))[0] == "STAGES_INVALID"


async def test_a_formula_that_cannot_be_computed_is_refused_with_its_place(client: Client) -> None:
    reason, message = await refusal(client, shower_grid(20, requested="100", each="10 / (zenith - 20)"))
    assert reason == "EXPRESSION_INVALID"
    assert "divides by zero" in message


async def test_a_template_that_the_scheduler_refuses_is_refused(client: Client, scheduler: FakeScheduler) -> None:
    scheduler.refusal = "there is no value for {zenit}"
    reason, message = await refusal(client, shower_grid(20, requested="100", each="10"))
    assert (reason, message.endswith("there is no value for {zenit}")) == ("TEMPLATE_INVALID", True)


async def test_a_filter_that_the_catalogue_refuses_is_refused(client: Client) -> None:
    wanted = chain(a=[])
    wanted.stages[0].data.filter = "metadata.nosuch = 1"
    assert (await refusal(client, wanted))[0] == "FILTER_INVALID"


async def test_a_filter_that_leaves_no_room_to_ask_for_new_files_is_refused(client: Client) -> None:
    wanted = chain(a=[])
    wanted.stages[0].data.filter = " OR ".join(f'name = "/raw/{number}"' for number in range(280))
    reason, message = await refusal(client, wanted)
    assert reason == "FIELD_INVALID"
    assert "put the files into a dataset" in message


async def test_a_retry_with_the_same_request_id_returns_the_first_answer(client: Client) -> None:
    wanted = shower_grid(20, requested="100", each="10")
    request = pb.CreateProductionRequest(production=wanted, request_id=request_id())
    first = await client.stub.CreateProduction(request)
    assert await client.stub.CreateProduction(request) == first


async def test_a_name_is_used_once(client: Client) -> None:
    await client.begin(shower_grid(20, requested="100", each="10"))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await client.begin(shower_grid(20, requested="100", each="10"))
    assert reason_of(refused.value) == "PRODUCTION_EXISTS"


async def test_productions_are_found_by_their_tags(client: Client) -> None:
    await client.begin(shower_grid(20, requested="100", each="10"))
    await client.begin(chain(a=[]))
    found = await client.stub.ListProductions(pb.ListProductionsRequest(filter="tags.code = kaskade"))
    assert [one.name for one in found.productions] == ["productions/showers"]


async def test_a_caller_who_may_not_write_where_the_jobs_do_is_refused(served: Served) -> None:
    caller = Client(served.channel_for("bookkeeping.write", "compute.create", "storage.read:/", "storage.create:/home"))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await caller.begin(shower_grid(20, requested="100", each="10"))
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "storage.create for /out/" in (refused.value.details() or "")


async def test_a_caller_without_the_right_to_submit_jobs_is_refused(served: Served) -> None:
    caller = Client(served.channel_for("bookkeeping.write", "storage.read:/", "storage.create:/"))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await caller.begin(shower_grid(20, requested="100", each="10"))
    assert reason_of(refused.value) == "CAPABILITY_MISSING"
