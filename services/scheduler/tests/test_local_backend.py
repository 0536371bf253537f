"""The local backend: the conformance suite, and what is its own."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from khomas.scheduler.backends.interface import Backend, Observation, Seen, State, SubmitItem
from khomas.scheduler.backends.local import LocalSettings, open_local, plugin
from khomas.scheduler.conformance import GRACE, MIB, BackendConformance, OpenBackend, job, shell
from khomas.scheduler.wrapper import LOCAL_RUNNER, khomas_job


def runner_pid(spool: Path) -> int:
    pid: int = json.loads((spool / "runner.json").read_text())["pid"]
    return pid


def lives(pid: int) -> bool:
    """Whether it is there and not only waiting to be buried."""
    try:
        return khomas_job.process_state(pid)[0] != b"Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Path]:
    """A spool; afterwards its runner and the jobs that a failed test left are ended."""
    spool = tmp_path / "spool"
    yield spool
    for started in spool.glob("jobs/*/started"):
        if not (started.parent / "exit.json").exists():
            (started.parent / "cancel").write_text('{"grace_s": 0}')
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.kill(json.loads(started.read_text())["pid"], signal.SIGTERM)
    if (spool / "runner.json").exists():
        pid = runner_pid(spool)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not lives(pid))
        assert (spool / "runner.log").read_text() == ""


@pytest.fixture
def open_backend(spool: Path) -> OpenBackend:
    return lambda: open_local(LocalSettings(spool=spool, cpu_milli=4000))


class TestLocalBackend(BackendConformance):
    """The local backend keeps the contract."""

    many_run = 1000

    async def test_runner_that_was_killed_is_replaced_and_nothing_runs_twice(
        self, backend: Backend, spool: Path, tmp_path: Path
    ) -> None:
        items = [shell(f"echo {n} >> {tmp_path}/ran; sleep 0.3") for n in range(12)]
        ids = await self.submitted(backend, items)
        await self.wait_for(backend, ids[0], State.RUNNING)
        first = runner_pid(spool)
        os.kill(first, signal.SIGKILL)
        ends = [await self.ended(backend, one) for one in ids]
        assert {seen.state for seen in ends} == {State.SUCCEEDED}
        assert sorted(int(line) for line in (tmp_path / "ran").read_text().split()) == list(range(12))
        assert runner_pid(spool) != first

    async def test_end_during_the_runners_absence_is_told_to_incremental_readers(
        self, backend: Backend, spool: Path
    ) -> None:
        ids = await self.submitted(backend, [job("sleep", "0.3")])
        await self.wait_for(backend, ids[0], State.RUNNING)
        cursor = (await backend.poll(ids)).cursor
        os.kill(runner_pid(spool), signal.SIGKILL)
        wait_until((spool / "jobs" / ids[0] / "exit.json").exists)
        seen: list[Observation] = []
        deadline = time.monotonic() + 10
        while not seen and time.monotonic() < deadline:
            seen = (await backend.poll(ids, cursor)).observations
            await asyncio.sleep(0.02)
        assert [one.state for one in seen] == [State.SUCCEEDED]

    async def test_adopted_job_can_be_cancelled(self, backend: Backend, spool: Path) -> None:
        ids = await self.submitted(backend, [job("sleep", "60")])
        await self.wait_for(backend, ids[0], State.RUNNING)
        os.kill(runner_pid(spool), signal.SIGKILL)
        await backend.cancel(ids, GRACE)
        assert (await self.ended(backend, ids[0])).state == State.CANCELLED

    async def test_job_whose_wrapper_was_killed_is_absent_and_leaves_nothing(
        self, backend: Backend, spool: Path
    ) -> None:
        everything = {"cpu_milli": 4000}
        ids = await self.submitted(backend, [shell("echo $$; exec sleep 60", resources=everything)])
        log = spool / "jobs" / ids[0] / "stdout"
        wait_until(lambda: log.exists() and log.read_text().endswith("\n"))
        cursor = (await backend.poll(ids)).cursor
        os.kill(json.loads((spool / "jobs" / ids[0] / "started").read_text())["pid"], signal.SIGKILL)
        assert (await self.run(backend, job("true", resources=everything)))["state"] == "SUCCEEDED"
        assert (await self.look(backend, ids[0])).seen == Seen.ABSENT
        assert [one.seen for one in (await backend.poll(ids, cursor)).observations] == [Seen.ABSENT]
        assert not lives(int(log.read_text()))

    async def test_cores_and_memory_bound_what_runs_at_once(self, open_backend: OpenBackend, spool: Path) -> None:
        backend = open_local(LocalSettings(spool=spool, cpu_milli=4000, memory_bytes=1000 * MIB))
        one = {"cpu_milli": 500, "memory_bytes": 500 * MIB}
        ids = await self.submitted(backend, [job("sleep", "60", resources=one) for _ in range(3)])
        await self.wait_for(backend, ids[1], State.RUNNING)
        assert (await self.look(backend, ids[2])).state == State.QUEUED
        [resources] = await backend.list_resources()
        assert resources.cpu_milli == 4000
        await backend.cancel(ids, GRACE)
        for native_id in ids:
            await self.ended(backend, native_id)

    async def test_job_larger_than_the_machine_runs_alone(self, backend: Backend) -> None:
        assert (await self.run(backend, job("true", resources={"cpu_milli": 64_000})))["state"] == "SUCCEEDED"

    async def test_order_that_is_none_does_not_stop_the_others(self, backend: Backend, spool: Path) -> None:
        await self.run(backend, job("true"))
        (spool / "incoming" / "0.jsonl").write_text('{"op": "dance"}\nnot json\n{"op": "submit"}\n')
        assert (await self.run(backend, job("true")))["state"] == "SUCCEEDED"
        assert "not an order, in 0.jsonl: not json" in (spool / "runner.log").read_text()
        (spool / "runner.log").write_text("")

    async def test_old_cursor_gets_the_full_answer(self, backend: Backend, spool: Path) -> None:
        ids = await self.submitted(backend, [job("true")])
        await self.ended(backend, ids[0])
        wait_until(lambda: '"ended"' in (spool / "journal.1.jsonl").read_text())
        (spool / "journal.1.jsonl").rename(spool / "journal.7.jsonl")
        assert [one.state for one in (await backend.poll(ids, "1:0")).observations] == [State.SUCCEEDED]

    async def test_folders_are_for_their_owner_only(self, backend: Backend, spool: Path) -> None:
        item = job("true")
        await self.run(backend, item)
        assert (spool / "jobs" / item.token).stat().st_mode & 0o077 == 0

    async def test_outputs_cannot_be_fetched_from_elsewhere(self, backend: Backend, tmp_path: Path) -> None:
        item = job("true")
        await self.run(backend, item)
        with pytest.raises(ValueError, match="leads out"):
            await backend.fetch_output(item.token, "../../runner.json", str(tmp_path / "x"))


def test_runner_without_work_ends_by_itself(spool: Path) -> None:
    (spool / "incoming").mkdir(parents=True)
    order = {"op": "submit", "manifest": {"token": "t1", "command": ["true"]}}
    (spool / "incoming" / "1.jsonl").write_text(json.dumps(order) + "\n")
    subprocess.run([sys.executable, str(LOCAL_RUNNER), str(spool), "--idle-seconds", "0.1"], check=True, timeout=10)
    assert json.loads((spool / "jobs" / "t1" / "exit.json").read_text())["state"] == "SUCCEEDED"
    (spool / "runner.json").unlink()
    (spool / "runner.log").touch()


async def test_order_that_meets_an_ending_runner_is_not_left_lying(spool: Path) -> None:
    backend = open_local(LocalSettings(spool=spool))
    command = [sys.executable, str(LOCAL_RUNNER), str(spool), "--idle-seconds", "0", "--detach"]
    for number in range(10):
        await asyncio.to_thread(subprocess.run, command, check=True)
        await backend.submit([SubmitItem(f"t{number}", {"command": ["true"]})])
        exit_record = spool / "jobs" / f"t{number}" / "exit.json"
        await asyncio.to_thread(wait_until, exit_record.exists)


def test_plugin_names_its_kind_and_settings(tmp_path: Path) -> None:
    settings: Any = plugin.settings(spool=tmp_path)
    assert (plugin.name, plugin.open(settings).capabilities.kind) == ("local", "local")
    assert plugin.open(settings).render([SubmitItem("t", {"command": ["true"]})])[0].token == "t"
