"""Slurm by its commands: the conformance suite on a real one, and what is its own."""

import asyncio
import json
import os
import signal
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from khomas.api.scheduler.v1.state_pb2 import JobState
from khomas.kit.testing import serve
from khomas.scheduler.app import service
from khomas.scheduler.backends.commands import recording
from khomas.scheduler.backends.interface import Backend, Seen, State, Submitted
from khomas.scheduler.backends.slurm import SlurmSettings, open_slurm
from khomas.scheduler.conformance import GRACE, BackendConformance, OpenBackend, job, shell
from khomas.scheduler.testing import Scheduler, states
from khomas.scheduler.testing import shell as line
from tests.backends.conftest import shared_folder
from tests.testbeds.slurm import Slurm


@pytest.fixture
def settings(slurm: Slurm, tmp_path: Path) -> SlurmSettings:
    spool = tmp_path / "spool"
    return SlurmSettings(spool=spool, env=slurm.environment, poll_seconds=0.2, settle_seconds=1.0, pilots=0)


@pytest.fixture
def open_backend(settings: SlurmSettings) -> OpenBackend:
    return lambda: open_slurm(settings)


@pytest.mark.timeout(500)
class TestSlurm(BackendConformance):
    """Slurm keeps the contract."""

    patience_s = 60.0
    patience_of_thousand_s = 400.0
    many_run = 250

    async def test_jobs_that_ask_for_the_same_are_one_array(self, backend: Backend) -> None:
        with recording() as commands:
            ids = await self.submitted(backend, [job("true") for _ in range(50)])
        assert [command.argv[0] for command in commands] == ["sbatch"]
        assert len({one.partition("_")[0] for one in ids}) == 1
        for one in ids:
            await self.ended(backend, one)

    async def test_one_command_tells_of_all_jobs(self, backend: Backend) -> None:
        ids = await self.submitted(backend, [job("sleep", "60") for _ in range(5)])
        with recording() as commands:
            await backend.poll(ids)
        assert [command.argv[0] for command in commands] == ["squeue"]
        await backend.cancel(ids, GRACE)
        for one in ids:
            await self.ended(backend, one)

    async def test_partition_that_is_not_there_is_a_rejection(self, backend: Backend) -> None:
        [outcome] = await backend.submit([replace(job("true"), queue="nowhere")])
        assert outcome.kind == Submitted.REJECTED
        assert "partition" in outcome.message
        assert await backend.find([outcome.token]) == {}

    async def test_partitions_are_told_with_the_default_one_and_those_that_are_down(
        self, backend: Backend, slurm: Slurm
    ) -> None:
        slurm.command("scontrol", "update", "PartitionName=long", "RootOnly=YES")
        try:
            told = await backend.list_resources()
        finally:
            slurm.command("scontrol", "update", "PartitionName=long", "RootOnly=NO")
        assert [(one.queue, one.is_default, one.closed, one.message) for one in told] == [
            ("batch", True, False, ""),
            ("long", False, True, "the partition is for root only"),
            ("shut", False, True, "the partition is down"),
        ]
        assert [one.max_wall_time for one in told] == [None, timedelta(days=7), None]

    async def test_native_option_goes_along(self, backend: Backend) -> None:
        ids = await self.submitted(
            backend, [replace(job("sleep", "0.1"), native={"partition": "batch", "nodelist": "n3"})]
        )
        assert (await self.ended(backend, ids[0])).queue == "batch"

    async def test_nodes_to_avoid_join_those_that_the_job_excludes(self, backend: Backend, slurm: Slurm) -> None:
        item = replace(job("sleep", "60"), avoid_nodes=("n4", "n3"), native={"exclude": "n1"})
        [native_id] = await self.submitted(backend, [item])
        assert (await self.wait_for(backend, native_id, State.RUNNING)).node == "n2"
        assert slurm.command("squeue", "-h", "-j", native_id, "-o", "%x").strip() == "n[1,3-4]"
        await backend.cancel([native_id], GRACE)
        await self.ended(backend, native_id)

    async def test_wrapper_that_was_killed_leaves_the_word_to_slurm(
        self, backend: Backend, settings: SlurmSettings
    ) -> None:
        item = job("sleep", "60")
        [native_id] = await self.submitted(backend, [item])
        await self.wait_for(backend, native_id, State.RUNNING)
        started = settings.spool / "jobs" / item.token / "started"
        while not started.exists():
            await asyncio.sleep(0.1)
        os.kill(json.loads(started.read_text())["pid"], signal.SIGKILL)
        seen = await self.ended(backend, native_id)
        assert (seen.state, seen.native_state, seen.record) == (State.FAILED, "FAILED", None)

    async def test_controller_that_is_down_answers_for_nothing_and_loses_nothing(
        self, backend: Backend, slurm: Slurm
    ) -> None:
        [running] = await self.submitted(backend, [shell("sleep 12; echo done")])
        await self.wait_for(backend, running, State.RUNNING)
        slurm.stop("slurmctld")
        try:
            answer, late = await asyncio.gather(backend.poll([running]), backend.submit([job("true")]))
            assert (answer.complete, answer.observations[0].seen) == (False, Seen.NOT_ANSWERED)
            assert late[0].kind == Submitted.UNKNOWN
        finally:
            slurm.start("slurmctld")
            await asyncio.to_thread(slurm.ready)
        assert (await self.ended(backend, running)).state == State.SUCCEEDED

    async def test_frozen_controller_costs_a_deadline_and_no_more(self, settings: SlurmSettings, slurm: Slurm) -> None:
        backend = open_slurm(replace(settings, command_seconds=2.0))
        ids = await self.submitted(backend, [job("sleep", "1")])
        slurm.freeze("slurmctld")
        try:
            async with asyncio.timeout(20):
                answer = await backend.poll(ids)
        finally:
            slurm.thaw("slurmctld")
        assert answer.observations[0].seen in (Seen.NOT_ANSWERED, Seen.PRESENT)
        assert (await self.ended(backend, ids[0])).state == State.SUCCEEDED

    async def test_submission_whose_end_nobody_noted_is_found_by_its_name(
        self, settings: SlurmSettings, open_backend: OpenBackend
    ) -> None:
        item = shell("sleep 0.5")
        ids = await self.submitted(open_backend(), [item])
        for left in (settings.spool / "batches").glob("*/native"):
            left.unlink()
        for left in (settings.spool / "natives").iterdir():
            left.unlink()
        assert await open_backend().find([item.token]) == {item.token: ids[0]}
        assert await self.submitted(open_backend(), [item]) == ids

    async def test_job_whose_submission_never_happened_is_handed_over(
        self, settings: SlurmSettings, backend: Backend
    ) -> None:
        item = job("true")
        places = settings.spool / "places"
        places.mkdir(parents=True)
        (places / item.token).write_text("khomas-gone")
        assert await backend.find([item.token]) == {}
        [native_id] = await self.submitted(backend, [item])
        assert (await self.ended(backend, native_id)).state == State.SUCCEEDED


@pytest.mark.timeout(300)
async def test_jobs_go_to_a_partition_that_takes_them_and_wait_for_one_that_is_down(
    slurm: Slurm, tmp_path: Path
) -> None:
    options = {"spool": str(shared_folder("queues") / "spool"), "env": dict(slurm.environment), "poll_seconds": 0.2}
    settings = {"poll": 0.2, "backends": {"farm": {"kind": "slurm", "options": options}}}
    slurm.command("scontrol", "update", "PartitionName=batch", "MaxTime=10")
    try:
        async with serve(service, state=tmp_path / "state", settings={"scheduler": settings}) as served:
            scheduler = Scheduler(served)
            walls = [{"wall_time": f"{seconds}s"} for seconds in (300, 301, 10800)]
            ended = await scheduler.run(*[line("true", resources=wall) for wall in walls])
            places = [(job.attempts[0].queue, states([job])) for job in ended]
            assert places == [("batch", ["SUCCEEDED"]), ("long", ["SUCCEEDED"]), ("long", ["SUCCEEDED"])]

            [waiting] = await scheduler.submit(line("true", placement={"queue": "shut"}))
            await scheduler.wait(waiting.name, [JobState.JOB_STATE_PENDING])
            assert not (await scheduler.get(waiting.name)).attempts
            slurm.command("scontrol", "update", "PartitionName=shut", "State=UP")
            job = await scheduler.wait(waiting.name, seconds=60)
            assert (job.attempts[0].queue, states([job])) == ("shut", ["SUCCEEDED"])
    finally:
        slurm.command("scontrol", "update", "PartitionName=shut", "State=DOWN")
        slurm.command("scontrol", "update", "PartitionName=batch", "MaxTime=INFINITE")


@pytest.mark.timeout(300)
async def test_attempts_keep_away_from_the_nodes_where_others_failed(slurm: Slurm, tmp_path: Path) -> None:
    options = {"spool": str(shared_folder("avoiding") / "spool"), "env": dict(slurm.environment), "poll_seconds": 0.2}
    settings = {"poll": 0.2, "initial_backoff": 0.1, "backends": {"farm": {"kind": "slurm", "options": options}}}
    rule = {"exit_codes": [3], "action": "ACTION_RETRY"}
    policy = {"max_attempts": 4, "avoid_failed_nodes": True, "multiplier": 1, "rules": [rule]}
    async with serve(service, state=tmp_path / "state", settings={"scheduler": settings}) as served:
        scheduler = Scheduler(served)
        [failed] = await scheduler.submit(line("exit 3", retry=policy))
        job = await scheduler.wait(failed.name, seconds=120)
    assert sorted(one.node for one in job.attempts) == ["n1", "n2", "n3", "n4"]
