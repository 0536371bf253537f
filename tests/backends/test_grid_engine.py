"""Grid Engine: the conformance suite against a real one, and what is its own."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from khomas.scheduler.backends import grid_engine_answers
from khomas.scheduler.backends.grid_engine import GridEngineSettings, open_grid_engine
from khomas.scheduler.backends.interface import State, Usage
from khomas.scheduler.conformance import BackendConformance, OpenBackend
from tests.testbeds import grid_engine
from tests.testbeds.grid_engine import GridEngine

RECORDED = Path(__file__).parent / "recorded" / "grid_engine"


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GridEngine]:
    """One Grid Engine for all tests; many slots, since a round of its scheduler takes a second."""
    folder = tmp_path_factory.mktemp("grid-engine")
    # Its daemons and jobs have other users than the tests.
    for path in (folder, *folder.parents[:2]):
        path.chmod(path.stat().st_mode | 0o055)
    with grid_engine.running(folder, slots=64) as engine:
        yield engine


def settings_of(engine: GridEngine, spool: Path, **options: Any) -> GridEngineSettings:
    return GridEngineSettings(
        spool=spool,
        prefix=engine.prefix,
        tools=str(engine.tools),
        root=engine.root,
        cell=engine.cell,
        qmaster_port=engine.qmaster_port,
        execd_port=engine.execd_port,
        parallel_environment=engine.parallel_environment,
        **{"drmaa_library": str(engine.drmaa_library), **options},
    )


@pytest.fixture
def settings(engine: GridEngine, tmp_path: Path) -> GridEngineSettings:
    return settings_of(engine, tmp_path / "spool")


@pytest.fixture
def open_backend(settings: GridEngineSettings) -> OpenBackend:
    return lambda: open_grid_engine(settings)


@pytest.mark.timeout(900)
class TestGridEngine(BackendConformance):
    """Grid Engine keeps the contract, with submissions by DRMAA."""

    # A thousand tasks take a minute of a quiet machine with two cores, and as much longer as others are at work.
    patience_s = 400.0


def read(name: str) -> str:
    return (RECORDED / name).read_text()


def test_jobs_and_tasks_are_read() -> None:
    rows = grid_engine_answers.parse_jobs(read("qstat.xml"))
    started = datetime(2026, 11, 21, 8, 10, 32, tzinfo=UTC)
    assert [(row.native_id, row.name, row.code, row.queue, row.node, row.start_time) for row in rows] == [
        ("1", "k0a1", "r", "batch.q", "vm", started),
        ("2.3", "k0a2", "dr", "batch.q", "vm", started),
        ("3", "k0held", "hqw", "", "", None),
        ("9", "kerr", "Eqw", "", "", None),
    ]


def test_letters_of_states_are_translated() -> None:
    states = {
        code: grid_engine_answers.state_of(code) for code in ("qw", "hRwq", "t", "dr", "Rr", "S", "Ts", "Eqw", "")
    }
    assert states == {
        "qw": State.QUEUED,
        "hRwq": State.QUEUED,
        "t": State.RUNNING,
        "dr": State.RUNNING,
        "Rr": State.RUNNING,
        "S": State.SUSPENDED,
        "Ts": State.SUSPENDED,
        "Eqw": State.FAILED,
        "": State.UNKNOWN,
    }


def test_accounting_is_read_and_half_a_line_left_out() -> None:
    accounts = list(grid_engine_answers.parse_accounting(read("accounting").splitlines(keepends=True)))
    assert [(one.native_id, one.failed, one.exit_status) for one in accounts] == [
        ("2.1", 0, 0),
        ("4", 0, 0),
        ("7.1", 100, 137),
    ]
    usage = Usage(wall_s=2, cpu_user_s=0.002985, cpu_system_s=0.008864, max_memory_bytes=4564 << 10)
    assert accounts[0].usage == usage
    assert (accounts[0].queue, accounts[0].node) == ("batch.q", "vm")


def test_queues_are_told_with_what_is_wrong_with_them() -> None:
    queues = grid_engine_answers.parse_queues(read("queues.xml"), read("hosts.xml"))
    assert [(one.queue, one.cpu_milli, one.free_cpu_milli, one.message) for one in queues] == [
        ("batch.q", 16000, 8000, ""),
        ("broken.q", 4000, 0, "vm: load alarm, host does not answer, error"),
    ]
