"""Slurm by its REST server: the conformance suite on a real one, and what is its own."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from khomas.scheduler.backends import slurm_rest_answers as answers
from khomas.scheduler.backends.commands import recording
from khomas.scheduler.backends.interface import Backend, Seen, State, Submitted
from khomas.scheduler.backends.slurm_rest import SlurmRestSettings, open_slurm_rest
from khomas.scheduler.backends.spool.dialect import UnreadableAnswerError
from khomas.scheduler.conformance import GRACE, BackendConformance, OpenBackend, job, shell
from tests.backends.conftest import shared_folder
from tests.testbeds import slurm as slurm_bed
from tests.testbeds.slurm import Slurm

NATIVE = {
    "partition": "batch",
    "nodelist": "n3",
    "nice": 7,
    "constraint": "common",
    "gres": "tape:1",
    "licenses": "mars:1",
    "wckey": "w",
    "exclude": "n1",
}
OpenWith = Callable[[SlurmRestSettings], Backend]


def settings_of(slurm: Slurm, folder: Path) -> SlurmRestSettings:
    token = folder / "slurm.token"
    token.write_text(slurm.token())
    return SlurmRestSettings(
        url=slurm.rest_url, token_file=token, spool=folder / "spool", poll_seconds=0.2, settle_seconds=1.0
    )


@pytest.fixture
def settings(slurm: Slurm, tmp_path: Path) -> SlurmRestSettings:
    return settings_of(slurm, tmp_path)


@pytest.fixture
async def open_with() -> AsyncIterator[OpenWith]:
    opened: list[Backend] = []

    def open_one(settings: SlurmRestSettings) -> Backend:
        opened.append(open_slurm_rest(settings))
        return opened[-1]

    yield open_one
    for backend in opened:
        await backend.aclose()


@pytest.fixture
def open_backend(settings: SlurmRestSettings, open_with: OpenWith) -> OpenBackend:
    return lambda: open_with(settings)


@pytest.mark.timeout(500)
class TestSlurmRest(BackendConformance):
    """slurmrestd keeps the contract."""

    patience_s = 60.0
    patience_of_thousand_s = 400.0

    async def test_jobs_that_ask_for_the_same_are_one_array(self, backend: Backend) -> None:
        with recording() as calls:
            ids = await self.submitted(backend, [job("true") for _ in range(50)])
        assert [call.argv[:2] for call in calls] == [("POST", "slurm/job/submit")]
        assert calls[0].exit_code == 200
        assert len({one.partition("_")[0] for one in ids}) == 1
        for one in ids:
            await self.ended(backend, one)

    async def test_one_call_tells_of_all_jobs(self, backend: Backend) -> None:
        ids = await self.submitted(backend, [job("sleep", "60") for _ in range(40)])
        with recording() as calls:
            seen = (await backend.poll(ids)).observations
        assert [call.argv[:2] for call in calls] == [("GET", "slurm/jobs")]
        assert {one.seen for one in seen} == {Seen.PRESENT}
        with recording() as calls:
            await backend.cancel(ids, GRACE)
        assert len(calls) <= 2
        for one in ids:
            await self.ended(backend, one)

    async def test_partition_that_is_not_there_is_a_rejection(self, backend: Backend) -> None:
        [outcome] = await backend.submit([replace(job("true"), queue="nowhere")])
        assert outcome.kind == Submitted.REJECTED
        assert "partition" in outcome.message
        assert await backend.find([outcome.token]) == {}

    async def test_partitions_are_told_with_the_default_one_and_those_that_are_down(self, backend: Backend) -> None:
        assert [(one.queue, one.is_default, one.closed) for one in await backend.list_resources()] == [
            ("batch", True, False),
            ("long", False, False),
            ("shut", False, True),
        ]

    async def test_native_options_go_along(self, backend: Backend, slurm: Slurm) -> None:
        native = {**NATIVE, "account": "ctao", "qos": "normal"}
        [native_id] = await self.submitted(backend, [replace(job("sleep", "60"), native=native)])
        await self.wait_for(backend, native_id, State.RUNNING)
        told = slurm.command("squeue", "-h", "-j", native_id, "-o", "%P|%N|%a|%y|%q|%f|%b|%W|%w|%x")
        await backend.cancel([native_id], GRACE)
        await self.ended(backend, native_id)
        assert told.strip() == "batch|n3|ctao|7|normal|common|gres:tape:1|mars:1|w|n1"

    async def test_nodes_to_avoid_join_those_that_the_job_excludes(self, backend: Backend) -> None:
        item = replace(job("true"), avoid_nodes=("n4", "n3"), native={"exclude": "n1"})
        [native_id] = await self.submitted(backend, [item])
        assert (await self.ended(backend, native_id)).node == "n2"

    async def test_needs_go_along(self, backend: Backend, slurm: Slurm) -> None:
        resources = {"cpu_milli": 1500, "memory_bytes": 1 << 28, "wall_time_s": 600}
        [native_id] = await self.submitted(backend, [job("sleep", "60", resources=resources)])
        await self.wait_for(backend, native_id, State.RUNNING)
        told = slurm.command("squeue", "-h", "-j", native_id, "-o", "%C|%m|%l")
        await backend.cancel([native_id], GRACE)
        await self.ended(backend, native_id)
        assert told.strip() == "2|320M|15:00"

    async def test_job_that_died_without_a_record_says_so(self, backend: Backend, settings: SlurmRestSettings) -> None:
        item = job("sleep", "60")
        [native_id] = await self.submitted(backend, [item])
        await self.wait_for(backend, native_id, State.RUNNING)
        await kill_wrapper(settings, item.token)
        seen = await self.ended(backend, native_id)
        assert seen.state is State.FAILED
        assert seen.record is None

    async def test_usage_of_a_job_without_record_comes_from_the_database(
        self, backend: Backend, settings: SlurmRestSettings
    ) -> None:
        item = job("sleep", "60")
        [native_id] = await self.submitted(backend, [item])
        await self.wait_for(backend, native_id, State.RUNNING)
        await asyncio.sleep(2.5)
        await kill_wrapper(settings, item.token)
        await self.ended(backend, native_id)
        deadline = time.monotonic() + self.patience_s
        while not (used := await backend.usage([native_id])) or not used[native_id].max_memory_bytes:
            assert time.monotonic() < deadline, used
            await asyncio.sleep(0.2)
        assert used[native_id].wall_s >= 2

    async def test_server_that_is_down_answers_for_nothing_and_loses_nothing(
        self, backend: Backend, slurm: Slurm
    ) -> None:
        [running] = await self.submitted(backend, [shell("sleep 3; echo done")])
        await self.wait_for(backend, running, State.RUNNING)
        late = job("true")
        slurm.stop("slurmrestd")
        try:
            answer = await backend.poll([running])
            [outcome] = await backend.submit([late])
        finally:
            slurm.start("slurmrestd")
        assert (answer.complete, answer.observations[0].seen) == (False, Seen.NOT_ANSWERED)
        assert (outcome.kind, outcome.retry_after is not None) == (Submitted.THROTTLED, True)
        assert "does not answer" in outcome.message
        assert (await self.ended(backend, running)).state == State.SUCCEEDED
        assert (await self.run(backend, late))["state"] == "SUCCEEDED"

    async def test_controller_that_is_down_loses_nothing(self, backend: Backend, slurm: Slurm, tmp_path: Path) -> None:
        [running] = await self.submitted(backend, [shell(f"until [ -e {tmp_path}/go ]; do sleep 0.1; done")])
        await self.wait_for(backend, running, State.RUNNING)
        late = job("true")
        slurm.stop("slurmctld")
        try:
            answer, [outcome] = await asyncio.gather(backend.poll([running]), backend.submit([late]))
        finally:
            slurm.start("slurmctld")
            await asyncio.to_thread(slurm.ready)
        (tmp_path / "go").touch()
        assert (answer.complete, answer.observations[0].seen) == (False, Seen.NOT_ANSWERED)
        assert outcome.kind == Submitted.UNKNOWN
        assert (await self.ended(backend, running)).state == State.SUCCEEDED
        assert (await self.run(backend, late))["state"] == "SUCCEEDED"

    async def test_frozen_server_costs_a_deadline_and_runs_nothing_twice(
        self, settings: SlurmRestSettings, open_with: OpenWith, slurm: Slurm, tmp_path: Path
    ) -> None:
        backend = open_with(replace(settings, command_seconds=2.0))
        [running] = await self.submitted(backend, [shell("sleep 3")])
        item = shell(f"echo ran >> {tmp_path}/ran")
        slurm.freeze("slurmrestd")
        try:
            async with asyncio.timeout(20):
                answer = await backend.poll([running])
                [outcome] = await backend.submit([item])
        finally:
            slurm.thaw("slurmrestd")
        assert answer.observations[0].seen == Seen.NOT_ANSWERED
        assert outcome.kind == Submitted.UNKNOWN
        assert (await self.ended(backend, running)).state == State.SUCCEEDED
        assert (await self.run(backend, item))["state"] == "SUCCEEDED"
        await self.run(backend, job("true"))
        assert (tmp_path / "ran").read_text() == "ran\n"

    async def test_expired_token_is_told_and_a_new_one_is_taken(
        self, backend: Backend, settings: SlurmRestSettings, slurm: Slurm
    ) -> None:
        item = job("true")
        good = settings.token_file.read_text()
        settings.token_file.write_text(slurm.token(lifespan_s=1))
        await asyncio.sleep(2.1)
        [outcome] = await backend.submit([item])
        assert outcome.kind == Submitted.THROTTLED
        assert f"the token in {settings.token_file} expired" in outcome.message
        with pytest.raises(UnreadableAnswerError, match="expired"):
            await backend.list_resources()
        settings.token_file.write_text(good)
        assert (await self.run(backend, item))["state"] == "SUCCEEDED"

    async def test_file_without_a_token_is_told(self, backend: Backend, settings: SlurmRestSettings) -> None:
        settings.token_file.write_text("secret")
        with pytest.raises(UnreadableAnswerError, match="holds no token of Slurm"):
            await backend.list_resources()

    async def test_token_stays_out_of_what_people_see(self, backend: Backend, settings: SlurmRestSettings) -> None:
        with recording() as calls:
            await self.submitted(backend, [job("true")])
        assert settings.token_file.read_text() not in repr(calls)

    async def test_full_queue_is_throttled_and_has_room_later(self, backend: Backend, slurm: Slurm) -> None:
        order = ("sacctmgr", "-i", "modify", "user", "root", "set")
        slurm.command(*order, "MaxSubmitJobs=0")
        item = job("true")
        try:
            deadline = time.monotonic() + self.patience_s
            while (outcome := (await backend.submit([item]))[0]).kind == Submitted.ACCEPTED:
                assert time.monotonic() < deadline, "the limit is not in force"
                item = job("true")
                await asyncio.sleep(0.1)
        finally:
            slurm.command(*order, "MaxSubmitJobs=-1")
        assert outcome.kind == Submitted.THROTTLED
        assert outcome.retry_after is not None
        deadline = time.monotonic() + self.patience_s
        while (await backend.submit([item]))[0].kind != Submitted.ACCEPTED:
            assert time.monotonic() < deadline, "the limit is still in force"
            await asyncio.sleep(0.1)
        ids = await backend.find([item.token])
        assert (await self.ended(backend, ids[item.token])).state == State.SUCCEEDED

    async def test_submission_whose_end_nobody_noted_is_found_by_its_name(
        self, settings: SlurmRestSettings, open_backend: OpenBackend
    ) -> None:
        items = [shell("sleep 0.5") for _ in range(3)]
        ids = await self.submitted(open_backend(), items)
        for left in (settings.spool / "batches").glob("*/native"):
            left.unlink()
        for left in (settings.spool / "natives").iterdir():
            left.unlink()
        assert await open_backend().find([item.token for item in items]) == dict(
            zip((item.token for item in items), ids, strict=True)
        )
        assert await self.submitted(open_backend(), items) == ids


async def kill_wrapper(settings: SlurmRestSettings, token: str) -> None:
    """End the wrapper of a job as a machine that runs out of memory does."""
    started = settings.spool / "jobs" / token / "started"
    async with asyncio.timeout(60):
        while not started.exists() or not started.read_text():
            await asyncio.sleep(0.05)
    os.kill(json.loads(started.read_text())["pid"], signal.SIGKILL)


@pytest.fixture(scope="module")
def newest() -> Iterator[Slurm]:
    """The Slurm of the next Debian."""
    with slurm_bed.running(shared_folder("newest-slurm"), newest=True) as running:
        yield running


@pytest.mark.timeout(500)
class TestNewestSlurmRest(BackendConformance):
    """A newer slurmrestd, which speaks v0.0.40, keeps the contract too."""

    patience_s = 60.0
    patience_of_thousand_s = 400.0

    @pytest.fixture
    def settings(self, newest: Slurm, tmp_path: Path) -> SlurmRestSettings:
        return replace(settings_of(newest, tmp_path), accounting=False)

    @pytest.fixture
    def open_backend(self, settings: SlurmRestSettings, open_with: OpenWith) -> OpenBackend:
        return lambda: open_with(settings)

    async def test_default_partition_is_told_by_the_settings(
        self, settings: SlurmRestSettings, open_with: OpenWith
    ) -> None:
        told = await open_with(replace(settings, queue="long")).list_resources()
        assert [(one.queue, one.is_default, one.closed) for one in told] == [
            ("batch", False, False),
            ("long", True, False),
            ("shut", False, True),
        ]
        assert not any(one.is_default for one in await open_with(settings).list_resources())

    async def test_job_that_names_no_queue_goes_to_the_partition_of_the_settings(
        self, settings: SlurmRestSettings, open_with: OpenWith
    ) -> None:
        backend = open_with(replace(settings, queue="long"))
        [native_id] = await self.submitted(backend, [job("true")])
        assert (await self.ended(backend, native_id)).queue == "long"

    async def test_nodes_to_avoid_go_along(self, backend: Backend, newest: Slurm) -> None:
        [native_id] = await self.submitted(backend, [replace(job("true"), avoid_nodes=("n1", "n2", "n4"))])
        assert (await self.ended(backend, native_id)).node == "n3"

    async def test_native_options_go_along(self, backend: Backend, newest: Slurm) -> None:
        [native_id] = await self.submitted(backend, [replace(job("sleep", "60"), native=NATIVE)])
        await self.wait_for(backend, native_id, State.RUNNING)
        told = newest.command("squeue", "-h", "-j", native_id, "-o", "%P|%N|%y|%f|%b|%W|%w|%x")
        await backend.cancel([native_id], GRACE)
        await self.ended(backend, native_id)
        assert told.strip() == "batch|n3|7|common|gres/tape:1|mars:1|w|n1"

    async def test_partition_that_is_not_there_is_a_rejection(self, backend: Backend) -> None:
        [outcome] = await backend.submit([replace(job("true"), queue="nowhere")])
        assert outcome.kind == Submitted.REJECTED
        assert "partition" in outcome.message

    async def test_token_that_slurm_does_not_accept_is_told(
        self, backend: Backend, settings: SlurmRestSettings, slurm: Slurm
    ) -> None:
        settings.token_file.write_text(slurm.token())
        [outcome] = await backend.submit([job("true")])
        assert outcome.kind == Submitted.THROTTLED
        assert "does not accept the token" in outcome.message


def test_settings_for_commands_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="runs no commands"):
        SlurmRestSettings(url="http://slurm:6820", token_file=tmp_path, spool=tmp_path, ssh="head")
    with pytest.raises(ValueError, match="address of slurmrestd"):
        SlurmRestSettings(url="slurm:6820", token_file=tmp_path, spool=tmp_path)


def test_elements_of_arrays_are_read_also_from_a_list_that_was_cut_off() -> None:
    assert list(answers.elements("0-2,5,7-8%2")) == [0, 1, 2, 5, 7, 8]
    cut = set(answers.elements("8-10,12,344-34..."))
    assert {8, 9, 10, 12, 13, 344, 999} <= cut
    assert 11 not in cut


def test_numbers_and_states_of_all_versions_are_read() -> None:
    unset, set_, endless = (
        {"set": False, "infinite": False, "number": 0},
        {"set": True, "infinite": False, "number": 3},
        {"set": True, "infinite": True, "number": 0},
    )
    assert [answers.number(one) for one in (3, 0, None, -1, unset, set_, endless)] == [3, 0, None, None, None, 3, None]
    assert [answers.word(one) for one in ("RUNNING", ["RUNNING"], ["RUNNING", "COMPLETING"], [], None)] == [
        "RUNNING",
        "RUNNING",
        "COMPLETING",
        "",
        "",
    ]


def test_held_job_with_an_error_beside_its_number_is_no_refusal() -> None:
    held = json.loads('{"errors": [{"error_code": 2042, "error": "Job is in held state"}], "job_id": 25}')
    lost = json.loads('{"errors": [{"error_code": 5005, "error": "Zero Bytes were transmitted or received"}]}')
    wrong = json.loads('{"errors": [{"error_code": 2000, "error": "Invalid partition name specified"}]}')
    assert answers.errors(held) == [(2042, "Job is in held state")]
    assert [answers.refused(500, lost), answers.refused(500, wrong), answers.refused(400, {})] == [False, True, True]
