"""Rules through the wire, beside the real catalogue: what they want comes about, and comes about again."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.field_mask_pb2 import FieldMask
from sqlalchemy import update

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.catalog.v1 import dataset_pb2
from khomas.api.common.v1 import event_pb2
from khomas.api.storage.v1 import rule_pb2, storage_element_pb2, transfer_pb2
from khomas.api.storage.v1 import rule_service_pb2 as pb
from khomas.api.storage.v1 import storage_service_pb2 as storage_pb
from khomas.kit.boundary.status import reason_of
from khomas.kit.testing.auth import assert_methods_declare_access, assert_refuses_bad_tokens
from khomas.storage.rules.tables import rule as rule_table
from khomas.storage.rules.tables import rule_copy
from khomas.storage.rules.testing import PATIENCE, World, running
from khomas.storage.testing import until

Rule = rule_pb2.ReplicationRule
SERVICE = "khomas.api.storage.v1.RuleService"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running(tmp_path) as world:
        yield world


def test_every_rpc_declares_its_capability() -> None:
    assert_methods_declare_access(descriptor_pool.Default().FindServiceByName(SERVICE))


async def test_every_rpc_refuses_bad_tokens(world: World) -> None:
    await assert_refuses_bad_tokens(world.served, descriptor_pool.Default().FindServiceByName(SERVICE))


async def test_rule_makes_the_copies_that_are_missing(world: World) -> None:
    await world.files(["/hess/a", "/hess/b"], dataset="datasets/crab")

    rule = await world.rule("tier=1 | site=lyon", copies=2)

    rule = await world.becomes(rule, Rule.STATE_OK, files=2, ok_copies=4)
    assert world.lying("three") == ["hess/a", "hess/b"]
    assert await world.where(rule) == {"/hess/a": {"one", "three"}, "/hess/b": {"one", "three"}}
    assert (rule.counts.bytes, rule.counts.missing_bytes) == (10, 0)


async def test_files_that_join_the_dataset_are_taken_in_and_those_that_leave_let_go(world: World) -> None:
    await world.files(["/hess/a"], dataset="datasets/crab")
    rule = await world.rule("two")
    await world.becomes(rule, Rule.STATE_OK, files=1)

    await world.files(["/hess/b", "/hess/c"], dataset="datasets/crab")
    await world.becomes(rule, Rule.STATE_OK, files=3)
    leave = catalog_pb.UpdateDatasetFilesRequest(name="datasets/crab", remove=["/hess/a"], request_id=str(uuid4()))
    await world.catalog.UpdateDatasetFiles(leave)

    await world.becomes(rule, Rule.STATE_OK, files=2)
    assert await world.where(rule) == {"/hess/b": {"two"}, "/hess/c": {"two"}}


async def test_file_that_is_deleted_leaves_the_rule_and_is_back_when_it_is_undeleted(world: World) -> None:
    await world.files(["/hess/a", "/hess/b"], dataset="datasets/crab")
    rule = await world.rule("two")
    await world.becomes(rule, Rule.STATE_OK, files=2)

    delete = catalog_pb.BatchDeleteFilesRequest(names=["/hess/a"], reason="test", request_id=str(uuid4()))
    await world.catalog.BatchDeleteFiles(delete)
    await world.becomes(rule, Rule.STATE_OK, files=1)
    undelete = catalog_pb.BatchUndeleteFilesRequest(names=["/hess/a"], request_id=str(uuid4()))
    await world.catalog.BatchUndeleteFiles(undelete)

    await world.becomes(rule, Rule.STATE_OK, files=2, ok_copies=2)
    assert world.lying("two") == ["hess/a", "hess/b"]


async def test_changes_of_a_rule_are_told(world: World) -> None:
    await world.files(["/hess/a"], dataset="datasets/crab")
    rule = await world.rule("two")
    await world.becomes(rule, Rule.STATE_OK)
    await world.rules.DeleteRule(pb.DeleteRuleRequest(name=rule.name, request_id=str(uuid4())))

    request = event_pb2.WatchEventsRequest(filter='kind = "storage.rule.*"', until_now=True)
    told = [event async for batch in world.storage.WatchEvents(request) for event in batch.events]

    kinds = [event.kind.rpartition(".")[2] for event in told]
    assert (kinds[0], kinds[-1], set(kinds[1:-1])) == ("created", "deleted", {"changed"})
    last = Rule()
    told[-2].resource.Unpack(last)
    assert (last.state, last.counts.ok_copies) == (Rule.STATE_OK, 1)


async def test_files_below_a_directory_are_taken_in_when_they_match_the_filter(world: World) -> None:
    key = dataset_pb2.MetadataKey(name="metadataKeys/zenith", type=dataset_pb2.MetadataKey.TYPE_NUMBER)
    declare = catalog_pb.BatchCreateMetadataKeysRequest(metadata_keys=[key], request_id=str(uuid4()))
    await world.catalog.BatchCreateMetadataKeys(declare)
    rule = await world.rule("two", directory="/hess/raw", filter="metadata.zenith > 40")
    await world.files(["/hess/raw/low", "/hess/raw/high", "/hess/other"])

    change = catalog_pb.BatchUpdateMetadataRequest(request_id=str(uuid4()))
    change.updates.add(name="/hess/raw/high").set["zenith"].number = 50
    change.updates.add(name="/hess/other").set["zenith"].number = 50
    await world.catalog.BatchUpdateMetadata(change)

    await world.becomes(rule, Rule.STATE_OK, files=1)
    assert world.lying("two") == ["hess/raw/high"]
    back = catalog_pb.BatchUpdateMetadataRequest(request_id=str(uuid4()))
    back.updates.add(name="/hess/raw/high").set["zenith"].number = 20
    await world.catalog.BatchUpdateMetadata(back)
    await world.becomes(rule, Rule.STATE_OK, files=0)


async def test_copy_that_is_lost_is_made_again(world: World) -> None:
    await world.files(["/hess/a"], dataset="datasets/crab")
    rule = await world.rule("two | three")
    await world.becomes(rule, Rule.STATE_OK, files=1)
    (name,) = (await world.where(rule))["/hess/a"]

    lost = catalog_pb.BatchUpdateReplicasRequest(request_id=str(uuid4()))
    lost.updates.add(name="/hess/a", remove=[name])
    await world.catalog.BatchUpdateReplicas(lost)

    async def again() -> bool:
        found = (await world.catalog.BatchGetFiles(catalog_pb.BatchGetFilesRequest(names=["/hess/a"]))).results[0]
        return len(found.file.replicas) == 2

    await until(again, PATIENCE)
    await world.becomes(rule, Rule.STATE_OK, files=1, ok_copies=1)


async def test_transfer_that_fails_for_good_goes_elsewhere(world: World) -> None:
    await world.files(["/hess/a"], dataset="datasets/crab")
    # It takes a copy that nobody can write there.
    (world.folder / "three").rename(world.folder / "away")
    (world.folder / "three").write_text("no folder")
    rule = await world.rule("two | three", copies=2)

    stuck = await world.becomes(rule, Rule.STATE_STUCK, ok_copies=1)

    assert stuck.counts.stuck_copies == 1
    explained = await world.explained(rule)
    assert explained.reason in ("TRANSFERS_FAILED", "TOO_FEW_ELEMENTS")
    assert "1 of 2 copies of 1 files are there" in explained.summary
    assert explained.remedies
    (world.folder / "three").unlink()
    (world.folder / "away").rename(world.folder / "three")
    await world.becomes(rule, Rule.STATE_OK, ok_copies=2)


async def test_copy_whose_transfer_ended_unheard_is_looked_at_again(world: World) -> None:
    await world.files(["/hess/a"], dataset="datasets/crab")
    rule = await world.rule("two")
    await world.becomes(rule, Rule.STATE_OK)
    long_ago = datetime.now(UTC) - timedelta(hours=1)
    database = world.served.services["storage"].parts.database
    async with database.write() as connection:
        unheard = {"state": Rule.STATE_REPLICATING, "state_time": long_ago}
        await connection.execute(update(rule_copy).values(unheard))
        await connection.execute(update(rule_table).values(state=Rule.STATE_REPLICATING, due_time=long_ago))

    await world.becomes(rule, Rule.STATE_OK, ok_copies=1)


async def test_files_that_belong_together_lie_together(world: World) -> None:
    await world.files(["/hess/a"], "two", dataset="datasets/crab")
    await world.files(["/hess/b", "/hess/c"], "three", dataset="datasets/crab")

    rule = await world.rule("two | three", grouping=Rule.GROUPING_ALL)

    await world.becomes(rule, Rule.STATE_OK, files=3)
    assert set.union(*(await world.where(rule)).values()) == {"three"}


async def test_space_that_is_not_there_is_told_and_what_is_planned_is_reserved(world: World) -> None:
    await world.element("small", capacity_bytes=12)
    await world.files([f"/hess/{n}" for n in range(4)], dataset="datasets/crab")

    rule = await world.rule("small")

    stuck = await world.becomes(rule, Rule.STATE_STUCK, ok_copies=2, stuck_copies=2)
    assert (await world.explained(rule)).reason == "NO_SPACE"
    assert "space" in stuck.message


async def test_suspended_rule_copies_nothing_but_plans_and_reserves(world: World) -> None:
    await world.files(["/hess/a"], dataset="datasets/crab")

    rule = await world.rule("two", suspended=True)

    await world.becomes(rule, Rule.STATE_SUSPENDED, replicating_copies=1)
    element = await world.storage.GetStorageElement(storage_pb.GetStorageElementRequest(name="storageElements/two"))
    assert (element.space.planned_bytes, element.space.reserved_bytes) == (5, 5)
    assert world.lying("two") == []
    change = pb.UpdateRuleRequest(rule=Rule(name=rule.name), request_id=str(uuid4()))
    change.update_mask.CopyFrom(FieldMask(paths=["suspended"]))
    await world.rules.UpdateRule(change)
    await world.becomes(rule, Rule.STATE_OK, ok_copies=1)


async def test_number_of_copies_grows_and_shrinks(world: World) -> None:
    await world.files(["/hess/a"], dataset="datasets/crab")
    rule = await world.rule("*", copies=1)
    await world.becomes(rule, Rule.STATE_OK, ok_copies=1)

    async def want(copies: int) -> None:
        change = pb.UpdateRuleRequest(rule=Rule(name=rule.name, copies=copies), request_id=str(uuid4()))
        change.update_mask.CopyFrom(FieldMask(paths=["copies"]))
        await world.rules.UpdateRule(change)

    await want(3)
    await world.becomes(rule, Rule.STATE_OK, ok_copies=3)
    await want(2)
    await world.becomes(rule, Rule.STATE_OK, ok_copies=2)


async def test_rule_that_is_over_or_ended_is_gone_with_its_transfers(world: World) -> None:
    await world.files(["/hess/a"], dataset="datasets/crab")
    short = Rule(dataset="datasets/crab", expression="two", copies=1)
    short.lifetime.FromMilliseconds(200)
    over = await world.rules.CreateRule(pb.CreateRuleRequest(rule=short, request_id=str(uuid4())))
    ended = await world.rule("three")
    delete = pb.DeleteRuleRequest(name=ended.name, request_id=str(uuid4()))
    first = await world.rules.DeleteRule(delete)
    again = await world.rules.DeleteRule(delete)

    async def none() -> bool:
        return not (await world.rules.ListRules(pb.ListRulesRequest())).rules

    await until(none, PATIENCE)
    assert first == again
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.rules.GetRule(pb.GetRuleRequest(name=over.name))
    assert reason_of(caught.value) == "RULE_NOT_FOUND"

    async def quiet() -> bool:
        waiting = storage_pb.ListTransfersRequest(filter="state = WAITING OR state = RUNNING")
        return not (await world.storage.ListTransfers(waiting)).transfers

    await until(quiet, PATIENCE)


async def test_rules_that_mean_nothing_are_refused(world: World) -> None:
    wanted: list[tuple[str, dict[str, Any]]] = [
        ("EXPRESSION_INVALID", {"expression": "tow"}),
        ("EXPRESSION_INVALID", {"expression": "one &"}),
        ("EXPRESSION_INVALID", {"expression": ""}),
        ("TOO_FEW_ELEMENTS", {"expression": "one", "copies": 2}),
        ("FIELD_INVALID", {"expression": "one", "copies": 0}),
        ("DATASET_NOT_FOUND", {"expression": "one", "dataset": "datasets/unknown"}),
        ("FILTER_INVALID", {"expression": "one", "directory": "/hess", "filter": "metadata.zenit > 1"}),
        ("FIELD_INVALID", {"expression": "one", "directory": "/hess", "dataset": "datasets/crab"}),
    ]
    reasons = []
    for _, fields in wanted:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await world.rule(**fields)
        reasons.append(reason_of(caught.value))

    assert reasons == [reason for reason, _ in wanted]
    assert not (await world.rules.ListRules(pb.ListRulesRequest())).rules


async def test_same_request_makes_one_rule(world: World) -> None:
    await world.files(["/hess/a"], dataset="datasets/crab")
    request = pb.CreateRuleRequest(
        rule=Rule(dataset="datasets/crab", expression="two", copies=1), request_id=str(uuid4())
    )

    first, again = [await world.rules.CreateRule(request) for _ in range(2)]

    assert first.name == again.name
    assert len((await world.rules.ListRules(pb.ListRulesRequest(filter='dataset = "datasets/crab"'))).rules) == 1


async def test_preview_says_what_would_be_done_and_does_nothing(world: World) -> None:
    await world.files(["/hess/a", "/hess/b"], dataset="datasets/crab")
    wanted = Rule(dataset="datasets/crab", expression="one | two", copies=2)

    found = await world.rules.PreviewRule(pb.PreviewRuleRequest(rule=wanted))

    assert (found.files, found.bytes, found.bytes_to_copy, found.stuck_copies) == (2, 10, 10, 0)
    there = {one.storage_element: (one.files_there, one.files_to_copy, one.bytes_to_copy) for one in found.elements}
    assert there == {"one": (2, 0, 0), "two": (0, 2, 10)}
    assert all(one.free_bytes > 0 for one in found.elements)
    assert not (await world.rules.ListRules(pb.ListRulesRequest())).rules
    assert not (await world.storage.ListTransfers(storage_pb.ListTransfersRequest())).transfers


async def test_second_copy_goes_to_tape_and_new_files_do_not(world: World) -> None:
    await world.element("tape", media=storage_element_pb2.StorageElement.MEDIA_TAPE)
    await world.files(["/hess/a"], dataset="datasets/crab")

    rule = await world.rule("one | media=TAPE", copies=2)

    await world.becomes(rule, Rule.STATE_OK, ok_copies=2)
    assert world.lying("tape") == ["hess/a"]
    upload = storage_pb.BatchCreateUploadsRequest(request_id=str(uuid4()))
    upload.uploads.add(storage_elements=["tape"])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.storage.BatchCreateUploads(upload)
    assert reason_of(caught.value) == "STORAGE_ELEMENT_READ_ONLY"


async def test_transfers_of_a_rule_have_its_priority_account_and_origin(world: World) -> None:
    await world.files(["/hess/a"], dataset="datasets/crab")

    rule = await world.rule("two", priority=7, share="production")

    await world.becomes(rule, Rule.STATE_OK)
    (transfer,) = (await world.storage.ListTransfers(storage_pb.ListTransfersRequest())).transfers
    assert (transfer.priority, transfer.share) == (7, "production")
    assert transfer.origin == rule.name.removeprefix("replicationRules/")
    assert transfer.state == transfer_pb2.Transfer.STATE_SUCCEEDED
