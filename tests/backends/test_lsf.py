"""LSF, emulated: its documented answers, and commands that answer like it."""

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from khomas.scheduler.backends import lsf_answers
from khomas.scheduler.backends.interface import Backend, Seen, State, SubmitItem, Submitted, Usage
from khomas.scheduler.backends.lsf import LsfSettings, open_lsf
from khomas.scheduler.conformance import GRACE, BackendConformance, OpenBackend, job, shell, token
from tests.backends.recorded import lsf_system
from tests.backends.recorded.server import emulated

RECORDED = Path(__file__).parent / "recorded"
NOW = datetime(2026, 4, 12, 19, 0, tzinfo=UTC)


def read(name: str) -> str:
    return (RECORDED / name).read_text()


def test_jobs_and_elements_of_arrays_are_read() -> None:
    rows = lsf_answers.parse_jobs(read("lsf/bjobs.json"), NOW)
    assert [(row.native_id, row.state, row.node, row.exit_code) for row in rows] == [
        ("321", State.RUNNING, "node1", None),
        ("322[4]", State.QUEUED, "", None),
        ("322[5]", State.CANCELLED, "node1", 130),
        ("323", State.FAILED, "node1", 140),
        ("324", State.UNKNOWN, "node1", None),
    ]
    assert rows[0].usage == Usage(wall_s=34, cpu_user_s=31.5, max_memory_bytes=9 << 20)
    assert (rows[1].name, rows[1].usage) == ("k0192cb", None)
    assert rows[1].message == "New job is waiting for scheduling;"


def test_times_without_year_are_of_the_last_twelve_months() -> None:
    rows = lsf_answers.parse_jobs(read("lsf/bjobs.json"), NOW)
    assert [row.start_time for row in rows[:4]] == [
        datetime(2026, 4, 12, 18, 10, 55, tzinfo=UTC),
        None,
        datetime(2026, 1, 7, 9, 59, tzinfo=UTC),
        datetime(2025, 12, 30, 9, 59, tzinfo=UTC),
    ]


def test_empty_answer_is_read() -> None:
    assert lsf_answers.parse_jobs("No job found\n", NOW) == []
    assert lsf_answers.parse_jobs('{"COMMAND":"bjobs","JOBS":0,"RECORDS":[]}', NOW) == []


def test_number_of_a_submission_is_read() -> None:
    assert lsf_answers.parse_submitted("Job <12> is submitted to default queue <normal>.\n") == "12"
    assert lsf_answers.parse_submitted("nosuch: No such queue. Job not submitted.\n") == ""


def test_queues_are_told_with_what_is_wrong_with_them() -> None:
    queues = lsf_answers.parse_queues(read("lsf/bqueues.json"), read("lsf/bhosts.json"))
    assert [(one.queue, one.running_jobs, one.queued_jobs, one.message) for one in queues] == [
        ("normal", 5, 4, ""),
        ("night", 0, 0, "Open:Inact"),
    ]
    assert (queues[0].cpu_milli, queues[0].free_cpu_milli) == (12000, 7000)


def test_sizes_have_units() -> None:
    texts = ("9 Mbytes", "1.5 Gbytes", "2G", "512K", "7 bytes", "")
    assert [lsf_answers.size(text) for text in texts] == [9 << 20, 3 << 29, 2 << 30, 512 << 10, 7, 0]


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The commands, and the server behind them."""
    with emulated(tmp_path_factory.mktemp("lsf"), lsf_system, slots=16) as tools:
        yield tools


@pytest.fixture
def settings(tools: Path, tmp_path: Path) -> LsfSettings:
    return LsfSettings(spool=tmp_path / "spool", tools=str(tools), poll_seconds=0.1)


@pytest.fixture
def open_backend(settings: LsfSettings) -> OpenBackend:
    return lambda: open_lsf(settings)


@pytest.mark.timeout(600)
class TestLsf(BackendConformance):
    """LSF as emulated keeps the contract."""

    patience_s = 120.0
    patience_of_thousand_s = 400.0

    async def test_held_job_waits_until_it_is_released(self, backend: Backend) -> None:
        everything = {"cpu_milli": 16000}
        blocker, waiting = await self.submitted(
            backend, [job("sleep", "60", resources=everything), job("true", resources=everything)]
        )
        await self.wait_for(backend, blocker, State.RUNNING)
        assert [one.done for one in await backend.hold([waiting], True)] == [True]
        await backend.cancel([blocker], GRACE)
        await self.ended(backend, blocker)
        await asyncio.sleep(0.3)
        assert (await self.look(backend, waiting)).native_state == "PSUSP"
        await backend.hold([waiting], False)
        assert (await self.ended(backend, waiting)).state == State.SUCCEEDED

    async def test_unknown_queue_is_refused_and_leaves_nothing(self, backend: Backend) -> None:
        item = SubmitItem(token(), {"command": ["true"]}, queue="nosuch")
        [outcome] = await backend.submit([item])
        assert (outcome.kind, "queue" in outcome.message) == (Submitted.REJECTED, True)
        assert await backend.find([item.token]) == {}

    async def test_job_that_was_killed_without_record_is_told_by_the_history(self, backend: Backend) -> None:
        [native_id] = await self.submitted(backend, [shell("kill -9 $PPID")])
        seen = await self.ended(backend, native_id)
        assert (seen.state, seen.record) == (State.FAILED, None)


async def test_server_that_is_away_is_no_answer_and_nothing_is_lost(tmp_path: Path) -> None:
    with emulated(tmp_path / "tools", lsf_system, slots=4) as tools:
        backend = open_lsf(LsfSettings(spool=tmp_path / "spool", tools=str(tools), command_seconds=2))
        [outcome] = await backend.submit([shell(f"while [ ! -e {tmp_path}/go ]; do sleep 0.1; done")])
        (tools / "server").rename(tools / "away")
        answer = await backend.poll([outcome.native_id])
        assert (answer.complete, answer.observations[0].seen) == (False, Seen.NOT_ANSWERED)
        item = job("true")
        assert (await backend.submit([item]))[0].kind is Submitted.UNKNOWN
        (tools / "away").rename(tools / "server")
        (tmp_path / "go").touch()
        assert await backend.find([item.token]) == {}
        [again] = await backend.submit([item])
        assert again.kind is Submitted.ACCEPTED
        ids, deadline = [outcome.native_id, again.native_id], time.monotonic() + 60
        while {one.state for one in (await backend.poll(ids)).observations} != {State.SUCCEEDED}:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.2)
