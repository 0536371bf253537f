"""Pilots: the conformance suite with every job in one, on a real Slurm, and what is their own."""

import asyncio
import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from khomas.scheduler.backends.commands import recording
from khomas.scheduler.backends.interface import Backend, Seen, State
from khomas.scheduler.backends.slurm import SlurmSettings, open_slurm
from khomas.scheduler.conformance import GRACE, BackendConformance, OpenBackend, job, shell
from tests.testbeds.slurm import Slurm


@pytest.fixture
def settings(slurm: Slurm, tmp_path: Path) -> SlurmSettings:
    spool = tmp_path / "spool"
    common = SlurmSettings(spool=spool, env=slurm.environment, poll_seconds=0.2, settle_seconds=1.0)
    return replace(
        common,
        pilots=4,
        pilot_from_jobs=1,
        pilot_wall_s=900.0,
        pilot_idle_s=2.0,
        short_job_seconds=math.inf,
        lease_seconds=5.0,
    )


@pytest.fixture
def open_backend(settings: SlurmSettings) -> OpenBackend:
    return lambda: open_slurm(settings)


@pytest.mark.timeout(500)
class TestPilots(BackendConformance):
    """Jobs in pilots keep the contract of a backend."""

    patience_s = 60.0
    patience_of_thousand_s = 300.0

    async def test_thousand_jobs_need_one_submission_of_pilots(self, backend: Backend) -> None:
        with recording() as commands:
            ids = await self.submitted(backend, [job("true") for _ in range(100)])
        assert [Path(command.argv[0]).name for command in commands].count("sbatch") == 1
        with recording() as commands:
            await backend.poll(ids)
        assert len(commands) == 2  # squeue, and one look at the pool
        for one in ids:
            assert (await self.ended(backend, one)).state == State.SUCCEEDED

    async def test_long_jobs_and_jobs_with_native_options_go_by_themselves(self, settings: SlurmSettings) -> None:
        backend = open_slurm(replace(settings, short_job_seconds=600.0))
        items = [
            job("true", resources={"wall_time_s": 60}),
            job("true", resources={"wall_time_s": 3600}),
            job("true"),
            replace(job("true", resources={"wall_time_s": 60}), native={"partition": "batch"}),
            replace(job("true", resources={"wall_time_s": 60}), avoid_nodes=("n1",)),
        ]
        ids = await self.submitted(backend, items)
        assert [one.isdigit() for one in ids] == [False, True, True, True, True]
        for one in ids:
            assert (await self.ended(backend, one)).state == State.SUCCEEDED

    async def test_few_short_jobs_go_by_themselves_unless_there_is_a_pilot(self, settings: SlurmSettings) -> None:
        backend = open_slurm(replace(settings, pilot_from_jobs=3))
        few = await self.submitted(backend, [job("true"), job("true")])
        more = await self.submitted(backend, [job("true")])
        assert [one.partition("_")[0].isdigit() for one in (*few, *more)] == [True, True, False]
        for one in (*few, *more):
            assert (await self.ended(backend, one)).state == State.SUCCEEDED

    async def test_killed_pilot_loses_what_it_ran_and_nothing_that_waited(
        self, settings: SlurmSettings, tmp_path: Path
    ) -> None:
        backend = open_slurm(replace(settings, pilots=1))
        ran = tmp_path / "ran"
        running = await self.submitted(backend, [job("sleep", "600") for _ in range(4)])
        for one in running:
            await self.wait_for(backend, one, State.RUNNING)
        waiting = await self.submitted(backend, [shell(f"echo {n} >> {ran}") for n in range(8)])
        os.kill(begun(settings.spool), signal.SIGKILL)
        for one in running:
            record = (await self.ended(backend, one)).record
            assert record is not None
            assert (record["state"], record["reason_name"]) == ("FAILED", "INFRA_PILOT_ABORTED")
        for one in waiting:
            assert (await self.ended(backend, one)).state == State.SUCCEEDED
        assert sorted(ran.read_text().split()) == [str(n) for n in range(8)]

    async def test_job_that_a_lost_pilot_had_leased_and_not_begun_runs_in_another(
        self, settings: SlurmSettings, backend: Backend
    ) -> None:
        blockers = await self.submitted(backend, [job("sleep", "8", resources={"cpu_milli": 4000}) for _ in range(4)])
        for one in blockers:
            await self.wait_for(backend, one, State.RUNNING)
        item = job("true")
        [native_id] = await self.submitted(backend, [item])
        # As a node leaves it that dies between the lease and the start.
        [entry] = (settings.spool / "pool").iterdir()
        lost = settings.spool / "pilots" / "lost"
        lost.mkdir()
        entry.rename(lost / entry.name)
        assert (await self.ended(backend, native_id)).state == State.SUCCEEDED
        assert not lost.exists()
        for one in blockers:
            assert (await self.ended(backend, one)).state == State.SUCCEEDED

    async def test_pilots_ask_for_no_more_time_than_their_partition_gives(self, backend: Backend, slurm: Slurm) -> None:
        slurm.command("scontrol", "update", "PartitionName=batch", "MaxTime=10")
        try:
            await backend.list_resources()
            ids = await self.submitted(backend, [job("true", resources={"wall_time_s": 60}) for _ in range(40)])
            assert {one.isdigit() for one in ids} == {False}
            for one in ids:
                assert (await self.ended(backend, one)).state == State.SUCCEEDED
        finally:
            slurm.command("scontrol", "update", "PartitionName=batch", "MaxTime=INFINITE")

    async def test_place_of_a_pilot_that_was_never_submitted_is_given_to_another(self, settings: SlurmSettings) -> None:
        place = settings.spool / "pilots" / "never"
        place.mkdir(parents=True)
        (place / "size").write_text('{"cpu_milli": 4000, "memory_bytes": 0, "wall_s": 900, "sums_memory": false}')
        backend = open_slurm(replace(settings, pilots=1))
        [native_id] = await self.submitted(backend, [job("true")])
        assert (await self.ended(backend, native_id)).state == State.SUCCEEDED
        assert not place.exists()

    async def test_pilot_whose_native_id_nobody_noted_is_found_by_its_name(
        self, settings: SlurmSettings, slurm: Slurm, tmp_path: Path
    ) -> None:
        backend = open_slurm(replace(settings, pilots=1, lease_seconds=2.0))
        slurm.command("scontrol", "update", "PartitionName=batch", "State=DOWN")
        try:
            [native_id] = await self.submitted(backend, [shell(f"echo ran >> {tmp_path}/ran")])
            [pilot] = pilots(settings.spool)
            # As a keeper leaves it that is killed between the command and its note.
            for note in (settings.spool / "batches").glob("*/native"):
                if "khomas-" not in note.read_text():
                    note.unlink()
            await asyncio.sleep(3)
            for _ in range(3):
                seen = await self.look(backend, native_id)
            assert (pilots(settings.spool), "PENDING" in seen.native_state) == ([pilot], True)
        finally:
            slurm.command("scontrol", "update", "PartitionName=batch", "State=UP")
        assert (await self.ended(backend, native_id)).state == State.SUCCEEDED
        assert (tmp_path / "ran").read_text() == "ran\n"

    async def test_pilots_go_on_while_the_batch_system_is_down(
        self, settings: SlurmSettings, backend: Backend, slurm: Slurm
    ) -> None:
        running, ended = await self.submitted(backend, [job("sleep", "600"), job("true")])
        await self.wait_for(backend, running, State.RUNNING)
        await self.ended(backend, ended)
        [pilot] = pilots(settings.spool)
        slurm.stop("slurmctld")
        try:
            answer = await backend.poll([running])
            assert (answer.complete, answer.observations[0].seen) == (False, Seen.NOT_ANSWERED)
            [meanwhile] = await self.submitted(backend, [job("true")])
            assert (await self.ended(backend, meanwhile)).state == State.SUCCEEDED
            await asyncio.sleep(settings.lease_seconds + 1)
            assert (await self.look(backend, running)).seen is Seen.NOT_ANSWERED
        finally:
            slurm.start("slurmctld")
            await asyncio.to_thread(slurm.ready)
        assert (await self.wait_for(backend, running, State.RUNNING)).node
        assert pilot in pilots(settings.spool)
        await backend.cancel([running], GRACE)
        assert (await self.ended(backend, running)).state == State.CANCELLED

    async def test_refused_pilots_are_told_and_jobs_wait(self, settings: SlurmSettings) -> None:
        backend = open_slurm(replace(settings, pilot_native={"partition": "nowhere"}))
        [native_id] = await self.submitted(backend, [job("true")])
        seen = await self.look(backend, native_id)
        assert (seen.state, pilots(settings.spool)) == (State.QUEUED, [])
        assert seen.native_state.startswith("waits for a pilot, which was refused: ")
        assert "partition" in seen.native_state
        await backend.cancel([native_id], GRACE)
        assert (await self.ended(backend, native_id)).state == State.CANCELLED
        assert not list((settings.spool / "pool").iterdir())

    async def test_pilots_are_jobs_of_their_own_share(self, settings: SlurmSettings, slurm: Slurm) -> None:
        backend = open_slurm(replace(settings, pilot_native={"wckey": "khomas"}))
        [native_id] = await self.submitted(backend, [job("sleep", "60")])
        await self.wait_for(backend, native_id, State.RUNNING)
        assert "khomas" in slurm.command("squeue", "-h", "-t", "RUNNING", "-O", "wckey").split()
        await backend.cancel([native_id], GRACE)
        await self.ended(backend, native_id)

    async def test_pilot_takes_no_job_that_does_not_fit_into_the_rest_of_its_time(
        self, settings: SlurmSettings
    ) -> None:
        backend = open_slurm(replace(settings, pilots=2, pilot_wall_s=30.0, pilot_idle_s=20.0))
        first = await self.printed(backend, shell("echo $PPID; sleep 9", resources={"wall_time_s": 15}))
        second = await self.printed(backend, shell("echo $PPID", resources={"wall_time_s": 22}))
        # A pilot whose time had allowed it would have run both in the same child.
        assert first != second

    async def test_pilot_that_fails_its_test_takes_nothing_and_says_why(
        self, settings: SlurmSettings, tmp_path: Path
    ) -> None:
        small = tmp_path / "small"
        small.mkdir()
        await mounted("mount", "-t", "tmpfs", "-o", "size=32m", "khomas", str(small))
        try:
            backend = open_slurm(replace(settings, spool=small / "spool"))
            [native_id] = await self.submitted(backend, [job("true")])
            deadline = asyncio.get_running_loop().time() + self.patience_s
            while "bytes are free" not in (seen := await self.look(backend, native_id)).native_state:
                assert asyncio.get_running_loop().time() < deadline, seen
                await asyncio.sleep(0.3)
            assert seen.state == State.QUEUED
            assert len(pilots(small / "spool")) <= 4  # those that failed keep their places for a while
            await backend.cancel([native_id], GRACE)
            assert (await self.ended(backend, native_id)).state == State.CANCELLED
        finally:
            await mounted("umount", "-l", str(small))

    async def test_end_of_a_pilot_is_the_end_of_its_jobs(
        self, settings: SlurmSettings, backend: Backend, slurm: Slurm
    ) -> None:
        ids = await self.submitted(backend, [shell("trap 'echo told; exit 1' TERM; sleep 600 & wait")])
        await self.wait_for(backend, ids[0], State.RUNNING)
        await asyncio.sleep(1)
        await asyncio.to_thread(slurm.command, "scancel", "--signal=TERM", "--batch", "--state=RUNNING", "-p", "batch")
        record = (await self.ended(backend, ids[0])).record
        assert record is not None
        assert (record["state"], record["reason_name"]) == ("FAILED", "INFRA_PILOT_ABORTED")
        assert (await backend.peek(ids[0], "stdout", 0, 100)).data == b"told\n"

    async def test_held_job_waits_until_it_is_released(self, settings: SlurmSettings, backend: Backend) -> None:
        blockers = await self.submitted(backend, [job("sleep", "60", resources={"cpu_milli": 4000}) for _ in range(4)])
        for one in blockers:
            await self.wait_for(backend, one, State.RUNNING)
        [native_id] = await self.submitted(backend, [job("true")])
        await backend.hold([native_id], True)
        await backend.cancel(blockers, GRACE)
        for one in blockers:
            await self.ended(backend, one)
        await asyncio.sleep(1)
        seen = await self.look(backend, native_id)
        assert (seen.state, seen.native_state) == (State.QUEUED, "held")
        await backend.hold([native_id], False)
        assert (await self.ended(backend, native_id)).state == State.SUCCEEDED


def pilots(spool: Path) -> list[str]:
    """Pilots that have not been buried."""
    return sorted(path.name for path in (spool / "pilots").iterdir())


def begun(spool: Path) -> int:
    """Process id of the only pilot: the child of the wrapper that runs it."""
    [name] = pilots(spool)
    wrapper = json.loads((spool / "jobs" / name / "started").read_text())["pid"]
    return int(Path(f"/proc/{wrapper}/task/{wrapper}/children").read_text().split()[0])


async def mounted(*command: str) -> None:
    """Mount or unmount something."""
    process = await asyncio.create_subprocess_exec(*command)
    assert await process.wait() == 0
