"""PBS Professional and Torque, emulated: their documented answers, and commands that answer like them."""

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from khomas.scheduler.backends import pbs_answers
from khomas.scheduler.backends.interface import Backend, State, Submitted, Usage
from khomas.scheduler.backends.pbs import PbsSettings, open_pbs
from khomas.scheduler.conformance import GRACE, OpenBackend, job, shell
from tests.backends.emulated_suite import EmulatedConformance, loses_nothing_while_its_server_is_away
from tests.backends.recorded import pbs_system, torque_system
from tests.backends.recorded.server import emulated

RECORDED = Path(__file__).parent / "recorded"
TWO = {"cpu_milli": 2000, "memory_bytes": 1 << 20, "wall_time_s": 90}


def read(name: str) -> str:
    return (RECORDED / name).read_text()


def test_jobs_and_elements_of_arrays_are_read_from_json() -> None:
    rows = pbs_answers.parse_json(read("pbs/qstat.json"))
    assert [(row.native_id, row.state, row.node, row.queue) for row in rows] == [
        ("12[0].pbs", State.SUCCEEDED, "node1", "workq"),
        ("12[1].pbs", State.RUNNING, "node2", "workq"),
        ("12[2].pbs", State.QUEUED, "", "workq"),
        ("13.pbs", State.CANCELLED, "node1", "short"),
        ("14.pbs", State.FAILED, "", "short"),
    ]
    assert rows[0].start_time == datetime(2026, 11, 16, 4, 5, 6, tzinfo=UTC)
    assert rows[0].usage == Usage(wall_s=105, cpu_user_s=100, max_memory_bytes=2048 << 10)
    assert [row.name for row in rows[2:]] == ["k0192aa", "k0192ab", "k0192ac"]


def test_text_before_json_and_an_empty_answer_are_read() -> None:
    assert pbs_answers.parse_json('Warning: host unreachable\n{"timestamp":1,"pbs_server":"pbs"}') == []
    assert pbs_answers.parse_json("") == []


def test_jobs_of_torque_are_read_from_xml() -> None:
    rows = pbs_answers.parse_xml(read("torque/qstat.xml"))
    assert [(row.native_id, row.state, row.node, row.exit_status) for row in rows] == [
        ("21[0].head", State.FAILED, "node1", 3),
        ("21[1].head", State.RUNNING, "node1", None),
        ("22.head", State.QUEUED, "", None),
    ]
    assert rows[0].start_time == datetime(2026, 10, 21, 16, 26, 40, tzinfo=UTC)
    assert rows[0].usage == Usage(wall_s=10, cpu_user_s=9, max_memory_bytes=3456 << 10)
    assert pbs_answers.parse_xml("") == []


def test_queues_are_told_with_what_is_wrong_with_them() -> None:
    queues = pbs_answers.parse_queues(read("pbs/queues.json"), read("pbs/nodes.json"))
    assert [(one.queue, one.running_jobs, one.queued_jobs, one.message, one.closed) for one in queues] == [
        ("workq", 3, 4, "", False),
        ("old", 0, 0, "takes no jobs", True),
    ]
    assert (queues[0].cpu_milli, queues[0].free_cpu_milli) == (8000, 3000)
    assert (queues[0].max_wall_time, queues[1].max_wall_time) == (timedelta(hours=48), None)
    assert queues[0].max_memory_bytes == 16384000 << 10


def test_default_queue_is_told_by_the_server_and_a_routing_one_stands_for_its_destinations() -> None:
    queues, server = read("pbs/queues.json"), '{"Server":{"pbs":{"server_state":"Active","default_queue":"%s"}}}'
    assert pbs_answers.parse_defaults(queues, server % "workq") == ["workq"]
    assert pbs_answers.parse_defaults(queues, server % "route") == ["route", "workq", "old"]
    assert pbs_answers.parse_defaults(queues, server % "workq", "old") == ["old"]
    assert pbs_answers.parse_defaults(queues, "") == [""]


def test_sizes_and_times_have_units() -> None:
    assert [pbs_answers.size(text) for text in ("12", "2kb", "3MB", "1gw", "none")] == [12, 2048, 3 << 20, 8 << 30, 0]
    assert [pbs_answers.seconds(text) for text in ("01:02:03", "90", "00:30")] == [3723, 90, 30]


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The commands, and the server behind them."""
    with emulated(tmp_path_factory.mktemp("pbs"), pbs_system, slots=16) as tools:
        yield tools


@pytest.fixture
def settings(tools: Path, tmp_path: Path) -> PbsSettings:
    return PbsSettings(spool=tmp_path / "spool", tools=str(tools), poll_seconds=0.1)


@pytest.fixture
def open_backend(settings: PbsSettings) -> OpenBackend:
    return lambda: open_pbs(settings)


@pytest.mark.timeout(600)
class TestPbs(EmulatedConformance):
    """PBS as emulated keeps the contract."""

    held = "H"

    async def test_default_queue_and_margin_are_told(self, backend: Backend) -> None:
        told = [(one.queue, one.is_default, one.closed) for one in await backend.list_resources()]
        assert told == [("workq", True, False), ("short", False, False)]
        assert backend.capabilities.wall_margin == timedelta(minutes=5)


async def test_server_that_is_away_is_no_answer_and_nothing_is_lost(tmp_path: Path) -> None:
    with emulated(tmp_path / "tools", pbs_system, slots=4) as tools:
        settings = PbsSettings(spool=tmp_path / "spool", tools=str(tools), command_seconds=2)
        await loses_nothing_while_its_server_is_away(lambda: open_pbs(settings), tools, tmp_path, Submitted.THROTTLED)


async def test_torque_runs_arrays_tells_of_them_and_ends_them(tmp_path: Path) -> None:
    with emulated(tmp_path / "tools", torque_system, slots=4) as tools:
        settings = PbsSettings(spool=tmp_path / "spool", tools=str(tools), torque=True, settle_seconds=0.5)
        backend = open_pbs(settings)
        items = [shell(f"echo {number}; exit {number}") for number in range(2)] + [job("sleep", "60", resources=TWO)]
        ids = [one.native_id for one in await backend.submit(items)]
        assert ids == ["1[0].pbs", "1[1].pbs", "2.pbs"]
        for note in (*settings.spool.glob("natives/*"), *settings.spool.glob("batches/*/native")):
            note.unlink()
        backend = open_pbs(settings)
        tokens = [one.token for one in items]
        assert await backend.find(tokens) == dict(zip(tokens, ids, strict=True))
        ends, deadline = {ids[0]: State.SUCCEEDED, ids[1]: State.FAILED, ids[2]: State.RUNNING}, time.monotonic() + 60
        while {one.native_id: one.state for one in (await backend.poll(ids)).observations} != ends:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.2)
        await backend.cancel(ids[2:], GRACE)
        while (await backend.poll(ids[2:])).observations[0].state != State.CANCELLED:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.2)
        assert (await backend.peek(ids[1], "stdout", 0, 9)).data == b"1\n"
        assert [one.queue for one in await backend.list_resources()] == [""]
