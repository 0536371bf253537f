"""PBS Professional and Torque, emulated: their documented answers, and commands that answer like them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from khomas.scheduler.backends import pbs_answers
from khomas.scheduler.backends.interface import State, Usage

RECORDED = Path(__file__).parent / "recorded"


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
    assert [(one.queue, one.running_jobs, one.queued_jobs, one.message) for one in queues] == [
        ("workq", 3, 4, ""),
        ("old", 0, 0, "takes no jobs"),
    ]
    assert (queues[0].cpu_milli, queues[0].free_cpu_milli) == (8000, 3000)
    assert (queues[0].max_wall_time, queues[1].max_wall_time) == (timedelta(hours=48), None)
    assert queues[0].max_memory_bytes == 16384000 << 10


def test_sizes_and_times_have_units() -> None:
    assert [pbs_answers.size(text) for text in ("12", "2kb", "3MB", "1gw", "none")] == [12, 2048, 3 << 20, 8 << 30, 0]
    assert [pbs_answers.seconds(text) for text in ("01:02:03", "90", "00:30")] == [3723, 90, 30]
