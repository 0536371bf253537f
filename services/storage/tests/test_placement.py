"""Policies, drains, single replicas and caches, beside the real catalogue."""

from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from uuid import uuid4

import grpc
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import code_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.catalog.v1 import dataset_pb2
from khomas.api.storage.v1 import drain_pb2, policy_pb2, rule_pb2, storage_element_pb2, transfer_pb2
from khomas.api.storage.v1 import placement_service_pb2 as pb
from khomas.api.storage.v1 import rule_service_pb2 as rule_service_pb
from khomas.api.storage.v1 import storage_service_pb2 as storage_pb
from khomas.kit.boundary.status import info_of, reason_of
from khomas.kit.testing.auth import assert_methods_declare_access, assert_refuses_bad_tokens
from khomas.storage.rules.cleaning import Cached, chosen
from khomas.storage.rules.testing import PATIENCE, World, running
from khomas.storage.testing import until

Drain = drain_pb2.Drain
Rule = rule_pb2.ReplicationRule
SERVICE = "khomas.api.storage.v1.PlacementService"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running(tmp_path) as world:
        yield world


async def replicas(world: World, name: str) -> set[str]:
    found = await world.catalog.BatchGetFiles(catalog_pb.BatchGetFilesRequest(names=[name]))
    return {replica.storage_element for replica in found.results[0].file.replicas}


async def drain(world: World, name: str, *, decommission: bool = False) -> Drain:
    request = pb.DrainStorageElementRequest(
        name=f"storageElements/{name}", decommission=decommission, request_id=str(uuid4())
    )
    return await world.placement.DrainStorageElement(request)


async def ends(world: World, name: str, state: Drain.State.ValueType) -> Drain:
    found = Drain()

    async def ended() -> bool:
        found.CopyFrom(await world.placement.GetDrain(pb.GetDrainRequest(name=f"drains/{name}")))
        return found.state == state

    try:
        await until(ended, PATIENCE)
    except TimeoutError:
        pytest.fail(f"the drain stays like this: {found}")
    return found


async def delete(world: World, *wanted: tuple[str, str]) -> list[str]:
    """Return the reasons; empty = it is going to be deleted."""
    names = [pb.ReplicaName(file=file, storage_element=element) for file, element in wanted]
    answer = await world.placement.BatchDeleteReplicas(
        pb.BatchDeleteReplicasRequest(replicas=names, request_id=str(uuid4()))
    )
    return ["" if one.code == code_pb2.OK else info_of(one).reason for one in answer.results]


async def copied(world: World, name: str, element: str) -> None:
    wanted = [transfer_pb2.Transfer(file=name, destination=element)]
    request = storage_pb.BatchCreateTransfersRequest(transfers=wanted, request_id=str(uuid4()))
    (result,) = (await world.storage.BatchCreateTransfers(request)).results
    assert not result.HasField("error"), result.error.message

    async def there() -> bool:
        return element in await replicas(world, name)

    await until(there, PATIENCE)


async def counted(world: World, used_bytes: int) -> None:
    """Wait until the space of the StorageElement `cache` is known to be this."""

    async def settled() -> bool:
        request = storage_pb.GetStorageElementRequest(name="storageElements/cache")
        space = (await world.storage.GetStorageElement(request)).space
        return (space.used_bytes, space.reserved_bytes) == (used_bytes, 0)

    await until(settled, PATIENCE)


async def marked(world: World, high: int, low: int) -> None:
    """Give the StorageElement `cache` its watermarks."""
    element = storage_element_pb2.StorageElement(name="storageElements/cache", high_watermark=high, low_watermark=low)
    element.media = storage_element_pb2.StorageElement.MEDIA_DISK
    element.access_points.add(protocol="posix", address=str(world.folder / "cache"))
    mask = FieldMask(paths=["high_watermark", "low_watermark"])
    await world.storage.UpdateStorageElement(
        storage_pb.UpdateStorageElementRequest(storage_element=element, update_mask=mask, request_id=str(uuid4()))
    )


def test_every_rpc_declares_its_capability() -> None:
    assert_methods_declare_access(descriptor_pool.Default().FindServiceByName(SERVICE))


async def test_every_rpc_refuses_bad_tokens(world: World) -> None:
    await assert_refuses_bad_tokens(world.served, descriptor_pool.Default().FindServiceByName(SERVICE))


async def test_replica_that_nobody_needs_is_deleted_and_the_others_say_why_not(world: World) -> None:
    await world.files(["/hess/a", "/hess/b"], dataset="datasets/crab")
    await copied(world, "/hess/a", "three")
    rule = await world.rule("one")
    await world.becomes(rule, Rule.STATE_OK, ok_copies=2)

    wanted = [("/hess/a", "one"), ("/hess/a", "three"), ("/hess/b", "three"), ("/hess/c", "one")]
    reasons = await delete(world, *wanted)

    assert reasons == ["REPLICA_NEEDED", "", "NO_REPLICA", "FILE_NOT_FOUND"]

    async def gone() -> bool:
        return await replicas(world, "/hess/a") == {"one"}

    await until(gone, PATIENCE)
    assert world.lying("three") == []


async def test_last_replica_is_kept_and_of_two_last_ones_one(world: World) -> None:
    await world.files(["/hess/a", "/hess/b"])
    await copied(world, "/hess/a", "two")

    reasons = await delete(world, ("/hess/b", "one"), ("/hess/a", "one"), ("/hess/a", "two"))

    assert sorted(reasons) == ["", "LAST_REPLICA", "LAST_REPLICA"]

    async def one_is_left() -> bool:
        return len(await replicas(world, "/hess/a")) == 1

    await until(one_is_left, PATIENCE)
    assert await replicas(world, "/hess/b") == {"one"}


async def test_drained_element_is_empty_and_nothing_is_lost(world: World) -> None:
    await world.files([f"/hess/{n}" for n in range(5)], dataset="datasets/crab")
    await world.files(["/hess/only"])
    await world.files(["/hess/twice"])
    await copied(world, "/hess/twice", "two")
    rule = await world.rule("one | three")
    await world.becomes(rule, Rule.STATE_OK, ok_copies=5)

    begun = await drain(world, "one")
    done = await ends(world, "one", Drain.STATE_DRAINED)

    assert (begun.files_at_start, done.files_left) == (7, 0)
    assert world.lying("one") == []
    await world.becomes(rule, Rule.STATE_OK, ok_copies=5)
    assert set.union(*(await world.where(rule)).values()) == {"three"}
    assert await replicas(world, "/hess/twice") == {"two"}
    assert len(await replicas(world, "/hess/only")) == 1
    upload = storage_pb.BatchCreateUploadsRequest(request_id=str(uuid4()))
    upload.uploads.add(storage_elements=["one"])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.storage.BatchCreateUploads(upload)
    assert reason_of(caught.value) == "STORAGE_ELEMENT_READ_ONLY"


async def test_drain_waits_for_rules_that_allow_no_other_place_and_can_be_taken_back(world: World) -> None:
    await world.files(["/hess/a"], dataset="datasets/crab")
    rule = await world.rule("one")
    await world.becomes(rule, Rule.STATE_OK)

    await drain(world, "one")
    await world.becomes(rule, Rule.STATE_STUCK)

    explained = await world.placement.ExplainDrain(pb.ExplainDrainRequest(name="drains/one"))
    assert explained.reason == "WAIT_RULES"
    assert await replicas(world, "/hess/a") == {"one"}
    assert await delete(world, ("/hess/a", "one")) == ["REPLICA_NEEDED"]
    await world.placement.CancelDrain(pb.CancelDrainRequest(name="drains/one", request_id=str(uuid4())))
    await world.becomes(rule, Rule.STATE_OK, ok_copies=1)
    assert await world.where(rule) == {"/hess/a": {"one"}}


async def test_decommissioned_element_is_gone_and_its_id_is_not_used_again(world: World) -> None:
    await world.files(["/hess/a"])

    await drain(world, "one", decommission=True)
    await ends(world, "one", Drain.STATE_DECOMMISSIONED)

    names = [
        one.name
        for one in (await world.storage.ListStorageElements(storage_pb.ListStorageElementsRequest())).storage_elements
    ]
    assert "storageElements/one" not in names
    assert len(await replicas(world, "/hess/a") - {"one"}) == 1
    (world.folder / "one").rename(world.folder / "old")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.element("one")
    assert reason_of(caught.value) == "STORAGE_ELEMENT_EXISTS"


async def test_policy_gives_new_datasets_rules_and_old_ones_when_asked_to(world: World) -> None:
    await world.files(["/hess/old"], dataset="datasets/hess/old/dl3")
    await world.files(["/hess/other"], dataset="datasets/other")
    policy = policy_pb2.PlacementPolicy(name="policies/dl3", dataset_pattern="datasets/hess/*", existing=True)
    policy.rule.CopyFrom(Rule(expression="three", copies=1))
    await world.placement.CreatePolicy(pb.CreatePolicyRequest(policy=policy, request_id=str(uuid4())))

    await world.files(["/hess/new"], dataset="datasets/hess/new/dl3")

    async def done() -> bool:
        rules = (await world.rules.ListRules(rule_service_pb.ListRulesRequest(filter="state = OK"))).rules
        return {rule.dataset for rule in rules} == {"datasets/hess/old/dl3", "datasets/hess/new/dl3"}

    await until(done, PATIENCE)
    assert world.lying("three") == ["hess/new", "hess/old"]
    (listed,) = (await world.placement.ListPolicies(pb.ListPoliciesRequest())).policies
    assert listed.rules == 2


async def test_policy_asks_the_catalogue_about_its_filter_and_makes_nothing_while_suspended(world: World) -> None:
    policy = policy_pb2.PlacementPolicy(name="policies/crab", dataset_pattern="*", filter='name = "datasets/crab*"')
    policy.rule.CopyFrom(Rule(expression="two", copies=1))
    await world.placement.CreatePolicy(pb.CreatePolicyRequest(policy=policy, request_id=str(uuid4())))

    for name in ("datasets/vela", "datasets/crab"):
        dataset = catalog_pb.CreateDatasetRequest(dataset=dataset_pb2.Dataset(name=name), request_id=str(uuid4()))
        await world.catalog.CreateDataset(dataset)

    async def made() -> bool:
        return bool((await world.rules.ListRules(rule_service_pb.ListRulesRequest())).rules)

    await until(made, PATIENCE)
    assert [rule.dataset for rule in (await world.rules.ListRules(rule_service_pb.ListRulesRequest())).rules] == [
        "datasets/crab"
    ]


async def test_full_cache_is_cleaned_down_to_its_mark_and_protected_and_last_copies_stay(world: World) -> None:
    await world.element("cache", capacity_bytes=100)
    await world.files([f"/hess/{n:02}" for n in range(16)])
    await world.files(["/hess/kept"], dataset="datasets/crab")
    await world.files(["/hess/last"], "cache")
    for name in [*[f"/hess/{n:02}" for n in range(16)], "/hess/kept"]:
        await copied(world, name, "cache")
    await world.becomes(await world.rule("cache"), Rule.STATE_OK)

    await counted(world, 90)
    read = storage_pb.BatchCreateDownloadsRequest(names=["/hess/00"])
    (download,) = (await world.storage.BatchCreateDownloads(read)).downloads

    await marked(world, high=80, low=50)

    async def cleaned() -> bool:
        return len(world.lying("cache")) == 10

    await until(cleaned, PATIENCE)
    assert download.grants[0].storage_element == "cache"
    # The oldest went first of those that were never read.
    left = ["00", *[f"{n:02}" for n in range(9, 16)], "kept", "last"]
    assert world.lying("cache") == [f"hess/{name}" for name in left]


caches = st.lists(st.builds(Cached, st.uuids().map(str), st.integers(0, 100), st.integers(0, 3), st.booleans()))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(caches, st.integers(0, 500))
def test_last_and_protected_copies_are_never_chosen_for_cleaning(cached: list[Cached], need: int) -> None:
    going = chosen(cached, need)

    assert all(one.others and not one.protected for one in going)
    assert sum(one.size_bytes for one in going[:-1]) < need or not going


async def test_rpcs_say_when_something_is_not_there(world: World) -> None:
    calls: list[Awaitable[object]] = [
        world.placement.GetDrain(pb.GetDrainRequest(name="drains/no")),
        world.placement.DeletePolicy(pb.DeletePolicyRequest(name="policies/no", request_id=str(uuid4()))),
        world.placement.DrainStorageElement(
            pb.DrainStorageElementRequest(name="storageElements/no", request_id=str(uuid4()))
        ),
    ]
    reasons = []
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        reasons.append(reason_of(caught.value))

    assert reasons == ["DRAIN_NOT_FOUND", "POLICY_NOT_FOUND", "STORAGE_ELEMENT_NOT_FOUND"]


async def test_rules_policies_drains_and_caches_on_postgresql(postgresql_url: str, tmp_path: Path) -> None:
    async with running(tmp_path, database_urls={"storage": postgresql_url}) as world:
        await world.element("cache", capacity_bytes=100)
        policy = policy_pb2.PlacementPolicy(name="policies/crab", dataset_pattern="datasets/crab")
        policy.rule.CopyFrom(Rule(expression="one | three", copies=1))
        await world.placement.CreatePolicy(pb.CreatePolicyRequest(policy=policy, request_id=str(uuid4())))
        await world.files([f"/hess/{n}" for n in range(10)], dataset="datasets/crab")
        made: list[Rule] = []

        async def there() -> bool:
            made[:] = (await world.rules.ListRules(rule_service_pb.ListRulesRequest())).rules
            return bool(made)

        await until(there, PATIENCE)
        await world.becomes(made[0], Rule.STATE_OK, ok_copies=10)
        for n in range(10):
            await copied(world, f"/hess/{n}", "cache")
        assert await delete(world, ("/hess/0", "one")) == ["REPLICA_NEEDED"]

        await drain(world, "one", decommission=True)
        await ends(world, "one", Drain.STATE_DECOMMISSIONED)

        await world.becomes(made[0], Rule.STATE_OK, ok_copies=10)
        assert len(world.lying("three")) == 10
        await counted(world, 50)
        await marked(world, high=40, low=20)

        async def cleaned() -> bool:
            return len(world.lying("cache")) == 4

        await until(cleaned, PATIENCE)
        found = await world.rules.ListRuleCopies(rule_service_pb.ListRuleCopiesRequest(name=made[0].name, page_size=3))
        assert [one.storage_element for one in found.copies] == ["three"] * 3
