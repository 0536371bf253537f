"""Recalls from an emulated tape behind a real XRootD server."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import grpc
import pytest

from khomas.api.common.v1 import event_pb2
from khomas.api.storage.v1 import recall_pb2, transfer_pb2
from khomas.api.storage.v1 import recall_service_pb2 as pb
from khomas.api.storage.v1 import storage_service_pb2 as storage_pb
from khomas.kit.boundary.status import reason_of
from khomas.storage.recalls.tables import recall as recall_table
from khomas.storage.testing import until
from tests.storage.tape import CONTENT, ELEMENT, PATIENCE, Site, State, site_of
from tests.testbeds.tape import Tape


@pytest.fixture
async def site(tmp_path: Path, tape: Tape) -> AsyncIterator[Site]:
    async with site_of(tape, tmp_path) as running:
        yield running


async def test_thousand_files_are_one_request_and_come_as_they_are_delivered(site: Site) -> None:
    names = site.keep(1000)
    made = await site.recall(names)
    assert {one.state for one in made} == {State.STATE_WAITING}

    requested = await site.until_all(State.STATE_REQUESTED)
    assert await site.asked(1000) == [1000]
    assert len({one.request for one in requested}) == 1
    assert sorted(one.queue_position for one in requested if one.position_estimated)[-1] <= 1000

    await site.deliver(400)
    found = await site.until(lambda all_: sum(one.state == State.STATE_ONLINE for one in all_) == 400)
    assert {one.file for one in found if one.state == State.STATE_ONLINE} == set(names[:400])
    await site.deliver(600)
    await site.until_all(State.STATE_ONLINE)
    assert await site.asked(1000) == [1000]


async def test_wishes_that_come_one_after_the_other_are_one_request(site: Site) -> None:
    names = site.keep(20)
    for name in names:
        await site.recall([name])
    await site.until_all(State.STATE_REQUESTED)
    requests = await site.asked(20)
    assert sum(requests) == 20
    assert len(requests) < 20


async def test_front_end_that_is_down_pauses_and_goes_on(site: Site) -> None:
    names = site.keep(10)
    await site.recall(names[:5])
    await site.until_all(State.STATE_REQUESTED)
    await site.asked(5)
    site.tape.server.stop()
    await site.recall(names[5:])
    paused = await site.until(lambda all_: all(one.reason == recall_pb2.RECALL_REASON_FRONT_END for one in all_))
    assert {one.state for one in paused} == {State.STATE_WAITING, State.STATE_REQUESTED}
    assert all(one.message for one in paused)

    site.tape.server.start()
    assert await site.asked(10) == [5, 5]
    await site.deliver(10)
    await site.until_all(State.STATE_ONLINE)


async def test_request_of_which_the_answer_was_lost_is_found_again(site: Site) -> None:
    names = site.keep(3)
    await site.recall(names)
    await site.until_all(State.STATE_REQUESTED)
    await site.asked(3)
    parts = site.storage.served.services["storage"].parts
    # As if the process had died between the request and its answer.
    async with parts.database.write() as connection:
        await connection.execute(recall_table.update().values(state=State.STATE_WAITING, native_id=""))
    await site.until_all(State.STATE_REQUESTED)
    await site.deliver(3)
    await site.until_all(State.STATE_ONLINE)
    assert await site.asked(3) == [3]


async def test_wanting_a_file_again_is_the_same_recall_and_prolongs_it(site: Site) -> None:
    (name,) = site.keep(1)
    (first,) = await site.recall([name], pin_lifetime=timedelta(hours=1))
    await site.until_all(State.STATE_REQUESTED)
    await site.deliver(1)
    (online,) = await site.until_all(State.STATE_ONLINE)
    (again,) = await site.recall([name], pin_lifetime=timedelta(hours=5))
    assert again.name == first.name == online.name
    assert again.pin_time.ToDatetime() - online.pin_time.ToDatetime() > timedelta(hours=3)
    (shorter,) = await site.recall([name], pin_lifetime=timedelta(minutes=1))
    assert shorter.pin_time == again.pin_time


async def test_file_is_let_go_when_its_time_is_over(site: Site) -> None:
    (name,) = site.keep(1)
    await site.recall([name], pin_lifetime=timedelta(seconds=1))
    await site.until_all(State.STATE_REQUESTED)
    await site.deliver(1)
    await site.until_all(State.STATE_RELEASED)

    async def evicted() -> bool:
        return not (site.tape.disk / name[1:]).exists()

    await until(evicted, PATIENCE)


async def test_what_is_cancelled_is_taken_out_of_the_queue(site: Site) -> None:
    names = site.keep(4)
    made = await site.recall(names)
    await site.until_all(State.STATE_REQUESTED)
    await site.asked(4)
    request = pb.BatchCancelRecallsRequest(names=[one.name for one in made[:2]], request_id=str(uuid4()))
    answer = await site.recalls.BatchCancelRecalls(request)
    assert (answer.cancelled, answer.already_final) == (2, 0)

    async def gone() -> bool:
        return site.tape.waiting(site.folder) == [name[1:] for name in names[2:]]

    await until(gone, PATIENCE)
    states = {one.file: one.state for one in await site.all()}
    assert [states[name] for name in names] == [State.STATE_CANCELLED] * 2 + [State.STATE_REQUESTED] * 2


async def test_damaged_tape_is_tried_again_and_told(site: Site) -> None:
    good, bad = site.keep(2)
    site.tape.damage(bad[1:], "tape T00123 cannot be read")
    await site.recall([good, bad])
    await site.asked(2)
    site.tape.deliver(1, site.folder)

    def ended(found: list[recall_pb2.Recall]) -> bool:
        return {one.state for one in found} == {State.STATE_ONLINE, State.STATE_FAILED}

    found = {one.file: one for one in await site.until(ended)}
    assert found[bad].reason == recall_pb2.RECALL_REASON_TAPE_ERROR
    told = await site.recalls.ExplainRecall(pb.ExplainRecallRequest(name=found[bad].name))
    assert "T00123" in told.summary
    assert told.remedies


async def test_each_file_that_cannot_be_recalled_is_told_apart(site: Site) -> None:
    (name,) = site.keep(1)
    await site.storage.store("/hess/on-disk", b"abc")
    request = pb.BatchCreateRecallsRequest(files=[name, "/hess/on-disk", "/nothing"], request_id=str(uuid4()))
    results = (await site.recalls.BatchCreateRecalls(request)).results
    assert [one.WhichOneof("result") for one in results] == ["recall", "error", "error"]
    assert "no good copy on tape" in results[1].error.message
    assert results[2].error.code == grpc.StatusCode.NOT_FOUND.value[0]
    again = (await site.recalls.BatchCreateRecalls(request)).results
    assert again == results


async def test_files_of_a_dataset_are_recalled_as_far_as_they_are_on_tape(site: Site) -> None:
    names = site.keep(3)
    await site.storage.store("/hess/on-disk", b"abc")
    site.storage.catalog.datasets["datasets/raw"] = {*names[:2], "/hess/on-disk"}
    made = await site.recall((), dataset="datasets/raw")
    assert [one.file for one in made] == names[:2]
    assert await site.asked(2) == [2]


async def test_wrong_wishes_are_refused(site: Site) -> None:
    for request in (
        pb.BatchCreateRecallsRequest(request_id=str(uuid4())),
        pb.BatchCreateRecallsRequest(files=["/a"], dataset="datasets/a", request_id=str(uuid4())),
    ):
        with pytest.raises(grpc.aio.AioRpcError, match="files or a dataset") as caught:
            await site.recalls.BatchCreateRecalls(request)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await site.recalls.GetRecall(pb.GetRecallRequest(name="recalls/nothing"))
    assert reason_of(caught.value) == "RECALL_NOT_FOUND"


async def test_changes_are_told_as_events(site: Site) -> None:
    (name,) = site.keep(1)
    await site.recall([name])
    await site.until_all(State.STATE_REQUESTED)
    await site.deliver(1)
    await site.until_all(State.STATE_ONLINE)
    seen = []
    request = event_pb2.WatchEventsRequest(filter='kind = "storage.recall.*"')
    async for answer in site.storage.stub.WatchEvents(request, timeout=PATIENCE):
        for event in answer.events:
            recall = recall_pb2.Recall()
            event.resource.Unpack(recall)
            seen.append(recall.state)
        if State.STATE_ONLINE in seen:
            break
    assert seen == [State.STATE_WAITING, State.STATE_REQUESTED, State.STATE_ONLINE]


async def test_download_of_what_is_on_tape_says_so_until_it_is_on_disk(site: Site) -> None:
    (name,) = site.keep(1)
    told = await site.storage.download(name)
    assert not told.grants
    assert f"khomas recall {name}" in told.error.message
    await site.recall([name])
    await site.deliver(1)
    await site.until_all(State.STATE_ONLINE)
    (grant,) = (await site.storage.download(name)).grants
    async with site.storage.http.get(grant.url, headers=grant.headers) as answer:
        assert await answer.read() == CONTENT


async def test_transfer_of_what_is_on_tape_has_it_recalled_and_goes_on(site: Site) -> None:
    (name,) = site.keep(1)
    wanted = transfer_pb2.Transfer(file=name, destination="local")
    request = storage_pb.BatchCreateTransfersRequest(transfers=[wanted], request_id=str(uuid4()))
    (made,) = (await site.storage.stub.BatchCreateTransfers(request)).results

    async def found() -> transfer_pb2.Transfer:
        return await site.storage.stub.GetTransfer(storage_pb.GetTransferRequest(name=made.transfer.name))

    async def waits() -> bool:
        return any(one.reason == transfer_pb2.TRANSFER_REASON_ON_TAPE for one in (await found()).attempts)

    async def ended() -> bool:
        return (await found()).state >= transfer_pb2.Transfer.STATE_SUCCEEDED

    await until(waits, PATIENCE)
    assert (await found()).state == transfer_pb2.Transfer.STATE_WAITING
    told = await site.storage.stub.ExplainTransfer(storage_pb.ExplainTransferRequest(name=made.transfer.name))
    assert "on tape at lyon-hpss" in told.summary
    await site.deliver(1)
    await until(ended, PATIENCE)
    assert (await found()).state == transfer_pb2.Transfer.STATE_SUCCEEDED
    assert (site.storage.root / name[1:]).read_bytes() == CONTENT


async def test_copy_goes_to_tape_and_comes_back(site: Site) -> None:
    name = f"/{site.folder}/new"
    await site.storage.store(name, CONTENT)
    await site.copied(name, ELEMENT)
    assert (site.tape.disk / name[1:]).read_bytes() == CONTENT
    site.tape.archive(name[1:])
    site.only_on(name, ELEMENT)
    (site.storage.root / name[1:]).unlink()

    waiting = asyncio.create_task(site.copied(name, "local"))
    await site.deliver(1)
    await waiting
    assert (site.storage.root / name[1:]).read_bytes() == CONTENT
