"""HTCondor: the conformance suite against a real pool, and what is its own."""

import asyncio
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from khomas.scheduler.backends import htcondor_answers
from khomas.scheduler.backends.htcondor import HtcondorSettings, open_htcondor
from khomas.scheduler.backends.interface import Backend, Observation, Seen, State, SubmitItem, Submitted, Usage
from khomas.scheduler.conformance import GRACE, BackendConformance, OpenBackend, job, shell
from tests.testbeds import htcondor
from tests.testbeds.htcondor import DOMAIN, Htcondor


@pytest.fixture(scope="session")
def pool() -> Iterator[Htcondor]:
    """One pool for all tests; whoever stops it starts it again."""
    # Not in pytest's own folder, which every session shuts to other users.
    with tempfile.TemporaryDirectory(prefix="khomas-htcondor-") as folder, htcondor.running(Path(folder)) as running:
        yield running


@pytest.fixture
def tmp_path(pool: Htcondor) -> Iterator[Path]:
    """A folder that the jobs may write to."""
    with tempfile.TemporaryDirectory(prefix="khomas-htcondor-test-") as folder:
        shutil.chown(folder, pool.user.pw_uid, pool.user.pw_gid)
        yield Path(folder)


@pytest.fixture
def settings(pool: Htcondor, tmp_path: Path) -> HtcondorSettings:
    return HtcondorSettings(
        spool=tmp_path / "spool",
        prefix=pool.prefix,
        host_python="/usr/bin/python3",
        env=pool.bindings,
        collector=pool.collector,
        tokens=pool.tokens,
        domain=DOMAIN,
        variables={"ENABLE_IPV6": "False"},
        poll_seconds=0.2,
        settle_seconds=1.0,
        pilots=0,
    )


@pytest.fixture
def open_backend(settings: HtcondorSettings, pool: Htcondor) -> OpenBackend:
    settings.spool.mkdir(exist_ok=True)
    shutil.chown(settings.spool, pool.user.pw_uid, pool.user.pw_gid)
    return lambda: open_htcondor(settings)


@pytest.fixture
async def backend(open_backend: OpenBackend) -> AsyncIterator[Backend]:
    backend = open_backend()
    yield backend
    await backend.aclose()


@pytest.mark.timeout(900)
class TestHtcondor(BackendConformance):
    """HTCondor keeps the contract."""

    patience_s = 120.0
    patience_of_thousand_s = 600.0

    @pytest.fixture(autouse=True)
    def _asked(self, pool: Htcondor) -> None:
        self._pool = pool

    async def wait_for(self, backend: Backend, native_id: str, *states: State) -> Observation:
        """Wait; on failure say what the pool says."""
        try:
            return await super().wait_for(backend, native_id, *states)
        except AssertionError as error:
            said = [self._pool.run("condor_status"), self._pool.run("condor_q", "-allusers", "-better-analyze")]
            raise AssertionError("\n".join([str(error), *said])) from error


def test_pool_is_closed_when_all_its_slots_are_drained() -> None:
    slot = {"Name": "slot1@n1", "PartitionableSlot": True, "TotalSlotCpus": 4, "Cpus": 4, "State": "Drained"}
    assert htcondor_answers.pool_of([slot, {**slot, "State": "Unclaimed"}], [], "pool").closed is False
    drained = htcondor_answers.pool_of([slot, slot], [], "pool")
    assert (drained.closed, drained.message) == (True, "all slots are drained")
    assert htcondor_answers.pool_of([], [], "pool").closed is False


async def until(backend: Backend, native_id: str, *states: State) -> Observation:
    deadline = time.monotonic() + 120
    while (seen := (await backend.poll([native_id])).observations[0]).state not in states:
        assert time.monotonic() < deadline, f"still {seen}"
        await asyncio.sleep(0.5)
    return seen


@pytest.mark.timeout(300)
class TestHtcondorAlone:
    """What only HTCondor has."""

    async def test_jobs_of_one_submission_are_one_cluster_and_carry_their_tokens(
        self, backend: Backend, pool: Htcondor
    ) -> None:
        items = [job("sleep", "60", resources={"cpu_milli": 1200, "memory_bytes": 100 << 20}) for _ in range(3)]
        ids = [outcome.native_id for outcome in await backend.submit(items)]
        cluster = ids[0].partition(".")[0]
        assert ids == [f"{cluster}.{number}" for number in range(3)]
        told = pool.run("condor_q", "-allusers", cluster, "-af", "KhomasToken", "RequestCpus", "RequestMemory")
        assert told.split() == [word for item in items for word in (item.token, "2", "164")]
        await backend.cancel(ids, GRACE)
        for native_id in ids:
            await until(backend, native_id, State.CANCELLED)

    async def test_job_keeps_off_the_nodes_that_it_is_to_avoid(self, backend: Backend) -> None:
        [first] = await backend.submit([job("true")])
        node = (await until(backend, first.native_id, State.SUCCEEDED)).node
        native = {"requirements": "Cpus > 0 || Memory > 0"}
        [never, elsewhere] = await backend.submit(
            [
                replace(job("true"), avoid_nodes=("n1", f"{node}.example.org"), native=native),
                replace(job("true"), avoid_nodes=("n1", "n2"), native=native),
            ]
        )
        await until(backend, elsewhere.native_id, State.SUCCEEDED)
        assert (await backend.poll([never.native_id])).observations[0].state == State.QUEUED
        await backend.cancel([never.native_id], GRACE)
        await until(backend, never.native_id, State.CANCELLED)

    async def test_job_that_a_person_holds_waits_and_goes_on_when_released(self, backend: Backend) -> None:
        item = replace(job("true"), native={"requirements": "time() - QDate > 3"})
        [outcome] = await backend.submit([item])
        await backend.hold([outcome.native_id], True)
        waiting = (await backend.poll([outcome.native_id])).observations[0]
        assert (waiting.state, waiting.native_state[:24]) == (State.QUEUED, "HELD (ordered by Khomas ")
        await backend.hold([outcome.native_id], False)
        await until(backend, outcome.native_id, State.SUCCEEDED)

    async def test_script_that_is_gone_is_an_environment_failure(
        self, backend: Backend, settings: HtcondorSettings
    ) -> None:
        item = replace(job("true"), native={"requirements": "time() - QDate > 4"})
        [outcome] = await backend.submit([item])
        for script in (settings.spool / "batches").glob("*/script"):
            script.unlink()
        seen = (await backend.poll([outcome.native_id])).observations[0]
        deadline = time.monotonic() + 120
        while not seen.state.final:
            assert time.monotonic() < deadline, f"still {seen}"
            await asyncio.sleep(0.5)
            seen = (await backend.poll([outcome.native_id])).observations[0]
        assert seen.record is not None
        assert (seen.state, seen.record["reason_name"]) == (State.FAILED, "INFRA_ENVIRONMENT")
        assert "script" in seen.record["message"]

    async def test_wrong_requirements_are_refused_and_leave_nothing(self, backend: Backend) -> None:
        item = replace(job("true"), native={"requirements": "((("})
        [outcome] = await backend.submit([item])
        assert outcome.kind is Submitted.REJECTED
        assert await backend.find([item.token]) == {}

    async def test_pool_that_is_down_says_nothing_of_its_jobs(self, backend: Backend, pool: Htcondor) -> None:
        item = replace(shell("true"), native={"requirements": "false"})
        [outcome] = await backend.submit([item])
        pool.stop()
        try:
            answer = await backend.poll([outcome.native_id])
            assert ([one.seen for one in answer.observations], answer.complete) == ([Seen.NOT_ANSWERED], False)
            [refused] = await backend.submit([job("true")])
            assert refused.kind is Submitted.THROTTLED
        finally:
            pool.start()
        assert (await backend.poll([outcome.native_id])).observations[0].state is State.QUEUED
        await backend.cancel([outcome.native_id], GRACE)


@pytest.mark.timeout(400)
class TestHtcondorPilots:
    """Short jobs go by pilot."""

    @pytest.fixture
    def settings(self, settings: HtcondorSettings) -> HtcondorSettings:
        return replace(settings, pilots=4, pilot_from_jobs=1, pilot_idle_s=3.0, lease_seconds=3.0)

    async def test_short_jobs_share_pilots_and_others_go_by_themselves(
        self, backend: Backend, settings: HtcondorSettings
    ) -> None:
        items = [*[short("true") for _ in range(40)], job("true")]
        ids = [outcome.native_id for outcome in await backend.submit(items)]
        assert [one.startswith("khomas-") for one in ids] == [True] * 40 + [False]
        assert len(list((settings.spool / "pilots").iterdir())) == 4
        for native_id in ids:
            await until(backend, native_id, State.SUCCEEDED)

    async def test_killed_pilot_fails_what_it_ran_and_what_waited_runs_in_another(
        self, backend: Backend, settings: HtcondorSettings
    ) -> None:
        blockers = [outcome.native_id for outcome in await backend.submit([short("sleep", "600") for _ in range(4)])]
        for one in blockers:
            await until(backend, one, State.RUNNING)
        [waiting] = [outcome.native_id for outcome in await backend.submit([short("true")])]
        for pilot in (settings.spool / "pilots").iterdir():
            os.kill(payload(settings.spool / "jobs" / pilot.name), signal.SIGKILL)
        for one in blockers:
            seen = await until(backend, one, State.FAILED)
            assert seen.record is not None
            assert seen.record["reason_name"] == "INFRA_PILOT_ABORTED"
        await until(backend, waiting, State.SUCCEEDED)

    async def test_running_and_waiting_jobs_are_cancelled_and_the_next_one_runs(self, backend: Backend) -> None:
        ids = [outcome.native_id for outcome in await backend.submit([short("sleep", "600") for _ in range(6)])]
        async with asyncio.timeout(120):
            while sum(one.state is State.RUNNING for one in (await backend.poll(ids)).observations) < 4:
                await asyncio.sleep(0.5)
        seen = [one for one in (await backend.poll(ids)).observations if one.state is State.QUEUED]
        assert [one.native_state for one in seen] == ["waits for a place in a pilot"] * 2
        await backend.cancel(ids, GRACE)
        for one in ids:
            await until(backend, one, State.CANCELLED)
        [after] = [outcome.native_id for outcome in await backend.submit([short("true")])]
        await until(backend, after, State.SUCCEEDED)


def payload(folder: Path) -> int:
    """Process id of what the wrapper of this job runs."""
    wrapper = json.loads((folder / "started").read_text())["pid"]
    [child] = Path(f"/proc/{wrapper}/task/{wrapper}/children").read_text().split()
    return int(child)


def short(*command: str) -> SubmitItem:
    return job(*command, resources={"wall_time_s": 500})


def test_reasons_of_holds_are_translated() -> None:
    ads = [
        {"ClusterId": 7, "ProcId": 1, "JobStatus": 5, "HoldReasonCode": code, "HoldReason": "why"} for code in (1, 6)
    ]
    ads += [{**ads[0], "HoldReasonCode": code} for code in (34, 47)]
    told = [htcondor_answers.status_of(ad) for ad in ads]
    assert [(one.state, one.reason) for one in told] == [
        (State.QUEUED, ""),
        (State.FAILED, "INFRA_ENVIRONMENT"),
        (State.FAILED, "LIMIT_MEMORY"),
        (State.FAILED, "LIMIT_WALL"),
    ]


def test_job_that_htcondor_took_out_has_failed_and_one_that_a_person_removed_has_not() -> None:
    ad = {"ClusterId": 7, "ProcId": 0, "JobStatus": 3, "RemoveReason": "via condor_rm (by user khomas-prod)"}
    removed = {**ad, "RemoveReason": "The job attribute PeriodicRemove expression 'x' evaluated to TRUE"}
    held = {**removed, "LastHoldReason": "too much memory", "LastHoldReasonCode": 34}
    told = [htcondor_answers.past_of(one) for one in (ad, removed, held)]
    assert [(one.state, one.reason) for one in told] == [
        (State.CANCELLED, ""),
        (State.FAILED, "INFRA_ENVIRONMENT"),
        (State.FAILED, "LIMIT_MEMORY"),
    ]


def test_history_is_read_as_usage() -> None:
    ad = {
        "ClusterId": 7,
        "ProcId": 0,
        "JobStatus": 4,
        "ExitCode": 3,
        "ExitBySignal": False,
        "RemoteWallClockTime": 12.0,
        "RemoteUserCpu": 2.0,
        "RemoteSysCpu": 1.0,
        "ResidentSetSize_RAW": 10,
        "DiskUsage": 4,
    }
    account = htcondor_answers.accounts([ad])
    assert sorted(account) == ["7", "7.0"]
    status, usage = account["7"]
    assert (status.state, status.exit_code, status.message) == (State.FAILED, 3, "exit code 3")
    assert usage == Usage(wall_s=12, cpu_user_s=2, cpu_system_s=1, max_memory_bytes=10240, max_disk_bytes=4096)


def test_only_a_pool_has_its_name(settings_free: HtcondorSettings) -> None:
    assert settings_free.worker_env["_CONDOR_COLLECTOR_HOST"] == "cm.example.org"
    with pytest.raises(ValueError, match="over the network"):
        replace(settings_free, ssh="head")


@pytest.fixture
def settings_free() -> HtcondorSettings:
    return HtcondorSettings(spool=Path("/spool"), collector="cm.example.org", domain="example.org")
