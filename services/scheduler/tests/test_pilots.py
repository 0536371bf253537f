"""Pilots: how many are made and how big, when one is given up, and what becomes of its jobs then."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from khomas.scheduler.backends.interface import State
from khomas.scheduler.backends.slurm import SlurmDialect, SlurmSettings, open_slurm
from khomas.scheduler.backends.spool.dialect import Answer, Needs
from khomas.scheduler.backends.spool.pilots import PilotDialect
from khomas.scheduler.wrapper.khomas_pool import Pool

SQUEUE = "417|N/A|RUNNING|n1|batch|2026-01-01T00:00:00|NONE|None\n"


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return Pool(str(tmp_path))


def wait(pool: Pool, number: int, cpu_milli: int = 1000, memory_bytes: int = 0, wall_s: int = 60) -> list[str]:
    names = [f"{0:013d}.khomas-b{cpu_milli}.{n:06d}.t{memory_bytes}-{n}" for n in range(number)]
    names = [f"{name}.{cpu_milli}.{memory_bytes}.{wall_s}" for name in names]
    for name in names:
        Path(pool.path("pool", name)).touch()
    return names


def reserve(pool: Pool, most: int = 4, cpu_milli: int = 4000) -> list[dict[str, Any]]:
    return list(pool.reserve(str(most), str(cpu_milli), str(8 << 30), "14400")["reserved"].values())


def lease(pool: Pool, name: str) -> Path:
    folder = Path(pool.path("pilots", "p1"))
    folder.mkdir(exist_ok=True)
    Path(pool.path("pool", name)).rename(folder / name)
    job = Path(pool.path("jobs", name.split(".")[3]))
    job.mkdir(parents=True)
    Path(pool.path("ended")).mkdir(exist_ok=True)
    return job


def test_pilot_of_a_lone_job_asks_for_what_the_job_needs(pool: Pool) -> None:
    wait(pool, 1)
    assert reserve(pool) == [{"cpu_milli": 1000, "memory_bytes": 0, "wall_s": 135.0, "sums_memory": False}]


def test_many_jobs_get_as_many_pilots_as_are_allowed_and_time_enough_for_all(pool: Pool) -> None:
    wait(pool, 1000)
    seconds = 1.25 * 1000 * 60 / 16 + 60
    assert reserve(pool) == [{"cpu_milli": 4000, "memory_bytes": 0, "wall_s": seconds, "sums_memory": False}] * 4
    assert reserve(pool) == []
    assert len(list(Path(pool.path("pilots")).iterdir())) == 4


def test_jobs_for_which_there_is_room_get_no_more_pilots(pool: Pool) -> None:
    wait(pool, 1)
    assert len(reserve(pool)) == 1
    assert reserve(pool) == []
    wait(pool, 2)
    assert len(reserve(pool)) == 1


def test_jobs_that_state_their_memory_share_no_pilot_with_others(pool: Pool) -> None:
    wait(pool, 2)
    wait(pool, 2, memory_bytes=3 << 30)
    wait(pool, 1, memory_bytes=6 << 30)
    sizes = [(one["cpu_milli"], one["memory_bytes"] >> 30) for one in reserve(pool)]
    assert sizes == [(2000, 0), (2000, 6), (2000, 6)]


def test_system_that_refused_pilots_gets_some_for_one_job_each(pool: Pool) -> None:
    wait(pool, 3, cpu_milli=2000)
    assert [one["cpu_milli"] for one in reserve(pool, cpu_milli=0)] == [2000] * 3


def test_pilot_that_failed_its_test_has_no_room_and_keeps_its_place(pool: Pool) -> None:
    wait(pool, 1)
    reserve(pool, most=2)
    [folder] = Path(pool.path("pilots")).iterdir()
    told = {"failure": "no disk", "cpu_milli": 1000, "memory_bytes": 0, "wall_s": 100.0, "sums_memory": False}
    (folder / "heartbeat").write_text(json.dumps(told))
    assert len(reserve(pool, most=2)) == 1
    assert reserve(pool, most=2) == []


def test_held_jobs_are_out_of_reach_and_dropped_ones_are_gone(pool: Pool) -> None:
    names = wait(pool, 3)
    assert pool.hold("khomas-b1000:000000,000002")["done"] == 2
    assert (pool.look()["pool"], sorted(pool.look()["held"])) == ([names[1]], [names[0], names[2]])
    assert pool.release("khomas-b1000:000002")["done"] == 1
    assert pool.drop("khomas-b1000:000001,000002")["done"] == 2
    assert (pool.look()["pool"], pool.look()["held"]) == ([], [names[0]])


def test_buried_pilot_gives_back_what_it_had_not_begun_and_the_rest_has_failed(pool: Pool) -> None:
    waiting, running, cancelled, done, killed = wait(pool, 5)
    lease(pool, waiting)
    for name in (running, cancelled, done, killed):
        (lease(pool, name) / "started").write_text('{"host": "n1", "time": "2026-01-01T00:00:00Z"}')
    jobs = {name: Path(pool.path("jobs", name.split(".")[3])) for name in (running, cancelled, done, killed)}
    (jobs[cancelled] / "cancel").write_text('{"grace_s": 1}')
    (jobs[done] / "exit.json").write_text('{"state": "SUCCEEDED"}')
    (jobs[killed] / "exit.json").write_text('{"state": "FAILED", "reason_name": "APP_SIGNAL", "signal": 9}')
    told = pool.bury("p1", "never-there")
    assert (told["back"], sorted(told["lost"])) == ([waiting], sorted([running, cancelled, done, killed]))
    assert pool.look()["pool"] == [waiting]
    assert not Path(pool.path("pilots", "p1")).exists()
    record = json.loads((jobs[running] / "exit.json").read_text())
    assert (record["state"], record["reason_name"], record["host"]) == ("FAILED", "INFRA_PILOT_ABORTED", "n1")
    record = json.loads((jobs[killed] / "exit.json").read_text())
    assert (record["state"], record["reason_name"], record["signal"]) == ("FAILED", "INFRA_PILOT_ABORTED", 9)
    assert not (jobs[cancelled] / "exit.json").exists()
    assert json.loads((jobs[done] / "exit.json").read_text()) == {"state": "SUCCEEDED"}
    ended = {path.name for path in Path(pool.path("ended")).iterdir()}
    assert ended == {jobs[running].name, jobs[done].name, jobs[killed].name}


@pytest.fixture
def dialect() -> PilotDialect:
    settings = SlurmSettings(spool=Path("/spool"), lease_seconds=60.0)
    return PilotDialect(SlurmDialect(settings), settings, ["pool"])


def told(
    squeue: str, quiet_s: float = 1.0, *, begun: float = 0.0, end: Mapping[str, str] | None = None
) -> Sequence[Answer]:
    entry = "0.khomas-b.-.t1.1000.0.60"
    pilot = {
        "leases": {entry: begun},
        "told": {"host": "n1", "failure": ""},
        "quiet_s": quiet_s,
        "place": {"native": "417", "array": False, "index": 0},
        "end": end,
    }
    look = {"pool": [], "held": [], "pilots": {"p1": pilot}}
    return [Answer(0, squeue, ""), Answer(0, json.dumps(look), "")]


def test_live_pilot_is_not_given_up_whatever_the_batch_system_says(dialect: PilotDialect) -> None:
    began = time.time()
    statuses = dialect.statuses(told("", begun=began))
    assert not dialect.gone("p1")
    seen = statuses["khomas-b"]
    assert seen.start_time is not None
    assert (seen.state, seen.node) == (State.RUNNING, "n1")
    assert abs(seen.start_time.timestamp() - began) < 0.001


def test_quiet_pilot_is_not_given_up_while_the_batch_system_has_it(dialect: PilotDialect) -> None:
    assert dialect.statuses(told(SQUEUE, 590.0))["khomas-b"].state is State.QUEUED
    assert (dialect.gone("p1"), dialect.silent("p1")) == (False, False)
    dialect.statuses(told(SQUEUE, 610.0))
    assert (dialect.gone("p1"), dialect.silent("p1")) == (False, True)  # the batch system is told to end it
    dialect.statuses(told("", 610.0))
    assert (dialect.gone("p1"), dialect.silent("p1")) == (True, False)


def test_pilot_is_given_up_when_it_is_quiet_and_not_there_or_has_told_its_end(dialect: PilotDialect) -> None:
    dialect.statuses(told("", 61.0))
    assert dialect.gone("p1")
    assert dialect.statuses(told(SQUEUE, end={"state": "SUCCEEDED"}, begun=1.0)).keys() == {"417"}
    assert dialect.gone("p1")


@pytest.mark.parametrize(
    ("needs", "by_pilot"),
    [
        (Needs(wall_time_s=600), True),
        (Needs(wall_time_s=601), False),
        (Needs(), False),
        (Needs(wall_time_s=60, cpu_milli=4001), False),
        (Needs(wall_time_s=60, memory_bytes=17 << 30), False),
        (Needs(wall_time_s=60, queue="long"), False),
        (Needs(wall_time_s=60, native={"qos": "high"}), False),
    ],
)
def test_short_and_small_jobs_without_wishes_go_by_pilot(dialect: PilotDialect, needs: Needs, by_pilot: bool) -> None:
    assert dialect.takes(needs) == by_pilot


def test_job_that_waits_says_how_far_its_pilot_is(dialect: PilotDialect) -> None:
    entry = "0.khomas-b.-.t1.1000.0.60"
    place = {"native": "417", "array": False, "index": 0}
    pilot: dict[str, Any] = {"leases": {}, "told": None, "quiet_s": 1.0, "place": place, "end": None}
    look = Answer(0, json.dumps({"pool": [entry], "held": [], "pilots": {"p1": pilot}}), "")
    pending = "417|N/A|PENDING||batch|N/A|N/A|Resources\n"
    assert dialect.statuses([Answer(0, pending, ""), look])["khomas-b"].native_state == (
        "waits for a pilot, which is PENDING (Resources)"
    )
    dialect.trouble = "waits for a pilot, which was refused: no such account"
    assert dialect.statuses([Answer(0, pending, ""), look])["khomas-b"].native_state == dialect.trouble
    pilot["told"] = {"host": "n1", "failure": ""}
    look = Answer(0, json.dumps({"pool": [entry], "held": [], "pilots": {"p1": pilot}}), "")
    assert dialect.statuses([Answer(0, SQUEUE, ""), look])["khomas-b"].native_state == "waits for a place in a pilot"


def test_pilot_that_ended_before_it_ran_anything_says_why(dialect: PilotDialect) -> None:
    failed = "417|N/A|FAILED|n1|batch|N/A|N/A|NonZeroExitCode\n"
    dialect.statuses(told(failed))
    pilot: dict[str, Any] = dict(dialect.seen["pilots"]["p1"])
    assert dialect.failure(pilot) == ""  # it has begun a job, which must be seen to
    pilot["leases"] = {}
    assert dialect.failure(pilot) == ""  # it had passed its test
    assert dialect.failure(pilot | {"told": None}) == "FAILED"
    assert dialect.failure(pilot | {"end": {"state": "FAILED", "message": "no python3"}}) == "no python3"
    assert dialect.failure(pilot | {"told": {"failure": "no disk"}}) == "no disk"
    assert dialect.failure(pilot | {"told": {"failure": "", "ran": 3}}) == ""
    assert dialect.failure(pilot | {"end": {"state": "CANCELLED", "message": "drained"}}) == ""


def test_look_at_nothing_of_ours_costs_no_look_at_the_pool(dialect: PilotDialect) -> None:
    assert len(dialect.status(["417"])) == 1
    assert len(dialect.status(["417", "khomas-b"])) == 2
    dialect.statuses(told(SQUEUE))
    assert len(dialect.status(["417"])) == 2  # there is a pilot to see to


def sinfo(wall: str) -> Sequence[Answer]:
    rows = f"short*|up|0/8/0/8|8000|4|{wall}|idle|no\nweek|up|0/8/0/8|8000|4|7-00:00:00|idle|no\n"
    return [Answer(0, rows, ""), Answer(0, "", "")]


def test_pilots_keep_to_the_limit_of_their_queue(dialect: PilotDialect) -> None:
    dialect.queues(sinfo("10:00"))
    assert dialect.wall_s == 600 - 300 - 30
    assert (dialect.takes(Needs(wall_time_s=216)), dialect.takes(Needs(wall_time_s=217))) == (True, False)
    dialect.queues(sinfo("infinite"))
    assert dialect.wall_s == 4 * 3600
    assert dialect.takes(Needs(wall_time_s=600))


def test_unknown_option_of_pilots_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="pilot_native: slurm has no option colour; there are: account"):
        open_slurm(SlurmSettings(spool=Path("/spool"), pilot_native={"colour": "red"}))
