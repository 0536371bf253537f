"""Accounts: who gets free slots, who may wait, and what is kept free."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.api.scheduler.v1.job_pb2 import Job
from khomas.api.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceStub
from khomas.api.scheduler.v1.state_pb2 import JobState, Reason
from khomas.scheduler.config import ShareSettings
from khomas.scheduler.placement.shares import Load, Tree, allot, decayed
from khomas.scheduler.testing import Scheduler, shell
from khomas.scheduler.testing.backend import BatchSystem

LEAVES = ("daq", "hess/mc", "hess/users", "default")


def tree(**accounts: Any) -> Tree:
    return Tree({path.replace("__", "/"): ShareSettings(**one) for path, one in accounts.items()}, "default")


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    def account(reserved: bool = False) -> ShareSettings:
        return ShareSettings(
            weight=draw(st.sampled_from([0.5, 1.0, 3.0])),
            priority_class=draw(st.integers(0, 2)),
            reserved=draw(st.sampled_from([0.0, 0.1, 0.3])) if reserved else 0.0,
            max_running=draw(st.none() | st.integers(0, 20)),
        )

    return Tree({"daq": account(reserved=True), **{path: account() for path in ("hess", *LEAVES[1:])}}, "default")


@st.composite
def loads(draw: st.DrawFn) -> dict[str, Load]:
    return {leaf: Load(0, draw(st.integers(0, 10)), draw(st.floats(0, 1e6))) for leaf in LEAVES}


WAITING = st.fixed_dictionaries({leaf: st.integers(0, 30) for leaf in LEAVES})


@given(tree=trees(), loads=loads(), waiting=WAITING, room=st.integers(0, 40))
def test_nobody_gets_more_than_there_is_or_than_he_may(
    tree: Tree, loads: dict[str, Load], waiting: dict[str, int], room: int
) -> None:
    capacity = room + sum(load.running for load in loads.values())
    given_ = allot(tree, loads, waiting, room, capacity).given
    assert sum(given_.values()) <= room
    assert all(number <= waiting[leaf] for leaf, number in given_.items())
    after = tree.rolled_up({leaf: load + Load(running=given_.get(leaf, 0)) for leaf, load in loads.items()})
    before = tree.rolled_up(loads)
    for path, account in tree.accounts.items():
        if account.max_running is not None:
            assert after[path].running <= max(account.max_running, before[path].running)
    kept = tree.accounts["daq"].reserved * capacity - loads["daq"].running
    others = sum(number for leaf, number in given_.items() if leaf != "daq")
    assert others <= max(0, room - kept)


@given(tree=trees(), loads=loads(), waiting=WAITING, room=st.integers(0, 40))
def test_no_slot_stays_free_that_somebody_may_have(
    tree: Tree, loads: dict[str, Load], waiting: dict[str, int], room: int
) -> None:
    capacity = room + sum(load.running for load in loads.values())
    found = allot(tree, loads, waiting, room, capacity)
    reserve = tree.accounts["daq"].reserved
    if reserve == 0 and sum(found.given.values()) < room:
        left = [leaf for leaf in LEAVES if waiting[leaf] > found.given.get(leaf, 0)]
        assert set(left) <= found.over_quota.keys()


@given(loads=loads(), waiting=WAITING, room=st.integers(0, 40))
def test_higher_class_is_served_before_lower_ones(loads: dict[str, Load], waiting: dict[str, int], room: int) -> None:
    found = allot(tree(daq={"priority_class": 5}, hess__mc={}, hess__users={}), loads, waiting, room, 1000).given
    assert found.get("daq", 0) == min(waiting["daq"], room)


@given(weight=st.sampled_from([1.0, 2.0, 4.0]), room=st.integers(20, 60))
def test_slots_follow_the_weights(weight: float, room: int) -> None:
    accounts = tree(one={"weight": weight}, other={})
    found = allot(accounts, {}, {"one": 1000, "other": 1000}, room, room).given
    assert found["one"] == pytest.approx(room * weight / (weight + 1), abs=1)


def test_who_has_used_less_catches_up() -> None:
    accounts = tree(busy={}, idle={})
    found = allot(accounts, {"busy": Load(used_s=1e6)}, {"busy": 100, "idle": 10}, 20, 20).given
    assert found == {"busy": 10, "idle": 10}


def test_small_account_is_not_swamped_by_many_siblings_of_another() -> None:
    accounts = tree(hess__a={}, hess__b={}, hess__c={}, cta={})
    waiting = dict.fromkeys(("hess/a", "hess/b", "hess/c", "cta"), 100)
    assert allot(accounts, {}, waiting, 60, 60).given["cta"] == 30


def test_reserve_is_kept_even_while_nobody_asks_for_it() -> None:
    accounts = tree(daq={"reserved": 0.25}, hess={})
    assert allot(accounts, {}, {"hess": 100}, 20, 20).given == {"hess": 15}
    assert allot(accounts, {"daq": Load(running=3)}, {"hess": 100}, 17, 20).given == {"hess": 15}


def test_cpu_of_a_day_is_a_limit() -> None:
    accounts = tree(hess={"max_cpu_per_day": timedelta(hours=1)})
    found = allot(accounts, {"hess": Load(last_day_s=3600)}, {"hess": 5}, 20, 20)
    assert not found.given
    assert "1.0 of 1 CPU hours" in found.over_quota["hess"]


@given(age=st.floats(0, 1e7), cpu=st.floats(0, 1e9))
def test_use_counts_half_after_every_half_life(age: float, cpu: float) -> None:
    day = timedelta(days=1)
    assert decayed([(age + 86400, cpu)], day) == pytest.approx(decayed([(age, cpu)], day) / 2)


# ------------------------------------------------------------------------------------ through the wire

SHARES = {
    "daq": {"priority_class": 1, "members": ["daq-robot"]},
    "hess/mc": {"max_running": 2},
    "hess/users": {"max_queued": 3},
}


@pytest.fixture
def settings() -> dict[str, Any]:
    return {"shares": SHARES, "default_share": "hess/mc"}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def refused(scheduler: Scheduler, *specs: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await scheduler.submit(*specs)
    assert (await scheduler.stub.ListJobs(pb.ListJobsRequest())).jobs == []
    return caught.value.details() or ""


async def test_account_over_its_running_jobs_waits_with_the_reason(with_system: Scheduler, system: BatchSystem) -> None:
    jobs = await with_system.submit(*[shell("true") for _ in range(3)])
    [array] = await with_system.submit(shell("true", splitter={"count": {"count": 4}}))
    await until(lambda: len(system.going) == 2)
    async with asyncio.timeout(10):
        while (await with_system.get(array.name)).status.reason != Reason.REASON_WAIT_QUOTA:
            await asyncio.sleep(0.02)
    waiting = [await with_system.get(job.name) for job in jobs]
    late = [job for job in waiting if job.status.state == JobState.JOB_STATE_PENDING]
    assert [job.status.reason for job in late] == [Reason.REASON_WAIT_QUOTA]
    assert "hess/mc has 2 of at most 2 running jobs" in late[0].status.message
    explained = await with_system.stub.ExplainJob(pb.ExplainJobRequest(name=late[0].name))
    assert "khomas shares" in [remedy.command for remedy in explained.remedies]
    counts = (await with_system.get(array.name)).counts
    assert (counts.total, dict(counts.by_reason)) == (4, {"WAIT_QUOTA": 4})
    assert len(system.going) == 2


async def test_queue_that_would_get_too_long_is_refused_at_once(with_system: Scheduler) -> None:
    spec = shell("true", share="hess/users", splitter={"count": {"count": 4}})
    assert "hess/users has 0 waiting jobs and may have 3" in await refused(with_system, spec)
    later = {"limits": {"start_after": "2100-01-01T00:00:00Z"}}
    await with_system.submit(*[shell("true", share="hess/users", **later) for _ in range(3)])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await with_system.submit(shell("true", share="hess/users", **later))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("share", ["hess/nc", "hess", "daq"])
async def test_unknown_inner_or_foreign_account_is_refused(with_system: Scheduler, share: str) -> None:
    assert f"You have no account {share}" in await refused(with_system, shell("true", share=share))


async def test_member_may_use_his_account(with_system: Scheduler) -> None:
    stub = SchedulerServiceStub(with_system.served.channel_for("compute.create", subject="daq-robot"))
    asked = pb.BatchCreateJobsRequest(jobs=[Job(spec=shell("true", share="daq"))], request_id=str(uuid4()))
    assert len((await stub.BatchCreateJobs(asked)).jobs) == 1


async def test_use_is_charged_and_shown(with_system: Scheduler, system: BatchSystem) -> None:
    [job] = await with_system.submit(shell("true"))
    await until(lambda: bool(system.going))
    system.end(system.going[0], usage={"cpu_user_s": 90.0, "cpu_system_s": 10.0})
    await with_system.wait(job.name)
    later = {"limits": {"start_after": "2100-01-01T00:00:00Z"}}
    await with_system.submit(shell("true", splitter={"count": {"count": 5}}, **later))
    shares = {one.name: one for one in (await with_system.stub.ListShares(pb.ListSharesRequest())).shares}
    assert list(shares) == ["", "daq", "hess", "hess/mc", "hess/users"]
    assert shares["hess/mc"].cpu_used_last_day.seconds == 100
    assert (shares["hess"].used, shares["daq"].used) == (1.0, 0.0)
    assert (shares["hess"].queued_jobs, shares["hess/mc"].queued_jobs, shares["hess/mc"].running_jobs) == (5, 5, 0)
    assert [shares[name].entitled for name in ("", "daq", "hess/mc")] == [1.0, 0.5, 0.25]
    assert (shares["daq"].priority_class, shares["hess/mc"].max_running_jobs) == (1, 2)
