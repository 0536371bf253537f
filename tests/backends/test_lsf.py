"""LSF, emulated: its documented answers, and commands that answer like it."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from khomas.scheduler.backends import lsf_answers
from khomas.scheduler.backends.interface import Backend, State, Submitted, Usage
from khomas.scheduler.backends.lsf import LsfSettings, open_lsf
from khomas.scheduler.conformance import OpenBackend
from tests.backends.emulated_suite import EmulatedConformance, loses_nothing_while_its_server_is_away
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
    assert [(one.queue, one.running_jobs, one.queued_jobs, one.message, one.closed) for one in queues] == [
        ("normal", 5, 4, "", False),
        ("night", 0, 0, "Open:Inact", True),
    ]
    assert (queues[0].cpu_milli, queues[0].free_cpu_milli) == (12000, 7000)


def test_default_queues_are_read() -> None:
    assert lsf_answers.parse_defaults("Default Queues:  normal idle\nMBD_SLEEP_TIME used for calculations:  10\n") == [
        "normal",
        "idle",
    ]
    assert lsf_answers.parse_defaults("bparams: LSF is down\n") == []


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
class TestLsf(EmulatedConformance):
    """LSF as emulated keeps the contract."""

    held = "PSUSP"

    async def test_default_queue_and_closed_ones_are_told(self, backend: Backend) -> None:
        told = [(one.queue, one.is_default, one.closed) for one in await backend.list_resources()]
        assert told == [("normal", True, False), ("short", False, True)]


async def test_server_that_is_away_is_no_answer_and_nothing_is_lost(tmp_path: Path) -> None:
    with emulated(tmp_path / "tools", lsf_system, slots=4) as tools:
        settings = LsfSettings(spool=tmp_path / "spool", tools=str(tools), command_seconds=2)
        await loses_nothing_while_its_server_is_away(lambda: open_lsf(settings), tools, tmp_path, Submitted.UNKNOWN)
