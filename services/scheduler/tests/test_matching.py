"""Which backend a job goes to, and why."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from google.protobuf.json_format import ParseDict

from khomas.api.scheduler.v1.job_spec_pb2 import JobSpec
from khomas.scheduler.backends.interface import ComputeResource
from khomas.scheduler.placement.matching import Match, Needs, Offer, check_placement, match
from khomas.scheduler.placement.placing import Placing
from khomas.scheduler.ranking import Facts, Rank
from khomas.scheduler.ranking.weighted import weighted

SMALL = Offer("small", "slurm", "lyon", [ComputeResource("", cpu_milli=4000, max_memory_bytes=1000)])
LONG = Offer("long", "slurm", "lyon", [ComputeResource("", max_wall_time=timedelta(hours=12)), ComputeResource("week")])
BUSY = Offer("busy", "slurm", "windhoek", [ComputeResource("")], jobs=10, max_jobs=10)
DOWN = Offer("down", "slurm", "windhoek", [ComputeResource("")], trouble="no answer")


def found(spec: dict[str, Any], *offers: Offer) -> Match:
    parsed = ParseDict(spec, JobSpec())
    return match(parsed, Needs.of(parsed), offers)


def names(result: Match) -> list[str]:
    return [offer.name for offer in result.fitting]


def test_backend_with_room_comes_first() -> None:
    result = found({}, DOWN, BUSY, LONG, SMALL)
    assert names(result)[:2] == ["long", "small"]
    assert result.why == (
        "long: rank 0.9 = priority 1 x success rate 0.900 (no recent jobs); how long jobs wait there is not known; "
        "it has 0 of at most 1000 jobs; best of 4 that fit"
    )


def test_those_that_were_not_chosen_are_told_with_rank_or_reason() -> None:
    closed = replace(SMALL, name="shut", closed="banned by olga: SE down")
    result = found({"resources": {"cpuMilli": 8000}}, SMALL, LONG, BUSY, replace(closed, resources=()))
    assert result.others == [
        "small excluded: 8 cores wanted, it has 4",
        "shut excluded: banned by olga: SE down",
        "busy rank 0.9 (10 of at most 10 jobs)",
    ]


def test_closed_backend_gets_test_jobs_only_and_is_no_reason_to_refuse_a_job() -> None:
    closed = replace(SMALL, closed="banned by itself: refused", probed=True)
    assert names(found({}, closed)) == []
    assert found({}, closed).closed == {"small": "banned by itself: refused"}
    assert names(match(JobSpec(), Needs.of(JobSpec(), probe=True), [closed])) == ["small"]
    assert (closed.room, replace(closed, probed=False).room) == (1, 0)
    check_placement(JobSpec(), [closed])


def test_platform_is_one_that_the_queue_or_the_backend_declares() -> None:
    el9 = {"environment": {"platform": "x86_64-el9"}}
    declared = replace(SMALL, platforms=("x86_64-el9",))
    queue = replace(SMALL, name="queue", resources=[ComputeResource("", platforms=("x86_64-el9",))])
    assert names(found(el9, declared, queue)) == ["queue", "small"]
    assert found(el9, SMALL).excluded == {"small": "platform x86_64-el9 wanted, it declares none"}


def test_near_data_and_short_waits_come_first() -> None:
    slow = replace(SMALL, name="slow", expected_wait=timedelta(hours=1))
    fast = replace(SMALL, name="fast", expected_wait=timedelta(minutes=1))
    far = replace(fast, name="far", site="windhoek")
    spec = JobSpec()
    assert names(found({}, slow, fast)) == ["fast", "slow"]
    assert names(match(spec, Needs.of(spec, local={"lyon": 1.0}), [far, fast])) == ["fast", "far"]


def test_job_that_needs_its_data_at_the_site_goes_nowhere_else() -> None:
    spec = ParseDict({"placement": {"requireDataLocal": True}}, JobSpec())
    result = match(spec, Needs.of(spec, local={"lyon": 0.25, "windhoek": 1.0}), [SMALL, BUSY])
    assert names(result) == ["busy"]
    assert result.excluded == {"small": "only 25% of the input is at its site lyon"}


def no_lack(name: str, span: timedelta) -> None:
    return None


def test_equal_places_fill_evenly_by_their_cores() -> None:
    big = replace(SMALL, name="big", resources=[ComputeResource("", cpu_milli=12000)])
    placing = Placing([SMALL, big], weighted, no_lack)
    group = placing.group("all", JobSpec(), Needs.of(JobSpec()))
    taken = Counter[str]()
    for _ in range(160):
        best = placing.best(group)
        assert best is not None
        placing.took(best[0].name)
        taken[best[0].name] += 1
    assert taken == {"big": 120, "small": 40}


def test_thousand_jobs_of_equal_needs_are_ranked_once_over_fifty_queues() -> None:
    offers = [replace(SMALL, name=f"b{number:02}", expected_wait=timedelta(minutes=number)) for number in range(50)]
    ranked: list[int] = []

    def counting(places: Sequence[Facts], length: timedelta) -> list[Rank]:
        ranked.append(len(places))
        return weighted(places, length)

    placing = Placing(offers, counting, no_lack)
    began = time.process_time()
    for _ in range(1000):
        group = placing.group("all", JobSpec(), Needs.of(JobSpec()))
        best = placing.best(group)
        assert best is not None
        placing.took(best[0].name)
    assert ranked == [50]
    assert time.process_time() - began < 0.1  # 6 ms on a quiet machine


def test_full_places_come_last_and_say_so() -> None:
    placing = Placing([replace(SMALL, max_jobs=1), BUSY], weighted, no_lack)
    group = placing.group("all", JobSpec(), Needs.of(JobSpec()))
    assert placing.best(group) == (replace(SMALL, max_jobs=1), True)
    placing.took("small")
    best = placing.best(group)
    assert best is not None
    assert not best[1]


def test_what_does_not_fit_is_excluded_with_its_reason() -> None:
    result = found({"resources": {"cpuMilli": 8000}, "placement": {"exclude": ["long"]}}, SMALL, LONG)
    assert names(result) == []
    assert result.excluded == {"small": "8 cores wanted, it has 4", "long": "excluded by the job"}


def test_place_is_chosen_by_name_and_site() -> None:
    assert names(found({"placement": {"backends": ["small"]}}, SMALL, LONG)) == ["small"]
    assert names(found({"placement": {"sites": ["windhoek"]}}, SMALL, BUSY)) == ["busy"]


def test_any_queue_that_fits_will_do_unless_one_is_named() -> None:
    day = {"resources": {"wallTime": "86400s"}}
    assert names(found(day, LONG)) == ["long"]
    assert names(found({**day, "placement": {"queue": ""}}, LONG)) == ["long"]
    assert found({**day, "placement": {"queue": "none"}}, LONG).excluded == {"long": "it has no queue 'none'"}


HOUR, DAY = timedelta(hours=1), timedelta(days=1)
FARM = Offer(
    "farm",
    "slurm",
    "lyon",
    [
        ComputeResource("short", free_cpu_milli=9000, max_wall_time=HOUR, is_default=True),
        ComputeResource("week", free_cpu_milli=1000, max_wall_time=7 * DAY),
        ComputeResource("day", free_cpu_milli=4000, max_wall_time=DAY),
    ],
)


def chosen(wall: str, offer: Offer, queue: str = "") -> Mapping[str, str]:
    return found({"resources": {"wallTime": wall}, "placement": {"queue": queue}}, offer).queues


def test_job_that_fits_the_default_queue_names_none_and_others_name_the_best_that_fits() -> None:
    assert chosen("3600s", FARM) == {"farm": ""}
    assert chosen("3601s", FARM) == {"farm": "day"}
    assert chosen("100000s", FARM) == {"farm": "week"}
    assert chosen("60s", FARM, "week") == {"farm": "week"}
    assert found({"resources": {"wallTime": "7200s"}}, FARM).why.startswith("farm, queue day: rank 0.9")


def test_queue_is_chosen_by_wait_where_it_is_known_and_by_free_cores() -> None:
    short, week, day = FARM.resources
    quick = replace(FARM, resources=[short, replace(week, expected_wait=timedelta(minutes=1)), day])
    assert chosen("7200s", quick) == {"farm": "week"}
    assert chosen("60s", replace(FARM, resources=[replace(short, is_default=False), week, day])) == {"farm": "short"}


def test_only_queue_and_queues_without_names_are_never_named() -> None:
    assert chosen("60s", replace(FARM, resources=[ComputeResource("all")])) == {"farm": ""}
    assert chosen("60s", replace(FARM, resources=[ComputeResource("all"), ComputeResource("all")])) == {"farm": ""}
    assert chosen("60s", replace(FARM, resources=[ComputeResource("")])) == {"farm": ""}
    assert chosen("60s", replace(FARM, resources=[])) == {"farm": ""}
    assert chosen("60s", replace(FARM, resources=[]), "night") == {"farm": "night"}


def test_only_queues_that_the_operator_allows_are_chosen() -> None:
    allowed = replace(FARM, queues=frozenset({"week"}))
    assert [chosen(wall, allowed) for wall in ("60s", "7200s")] == [{"farm": ""}, {"farm": "week"}]
    assert chosen("7200s", allowed, "day") == {"farm": "day"}


def test_margin_that_is_asked_for_beside_the_wall_time_counts_towards_the_limit() -> None:
    farm = replace(FARM, wall_margin=timedelta(minutes=5))
    assert [chosen(wall, farm) for wall in ("3300s", "3301s")] == [{"farm": ""}, {"farm": "day"}]
    assert chosen("0s", replace(farm, wall_margin=HOUR * 2)) == {"farm": ""}
    assert found({"resources": {"wallTime": "3600s"}, "placement": {"queue": "short"}}, farm).excluded == {
        "farm": "1:00:00 of wall time wanted and 0:05:00 beside it, at most 1:00:00"
    }


def test_closed_queue_gets_no_jobs_and_is_no_reason_to_refuse_one() -> None:
    short, week, day = FARM.resources
    closed = replace(short, closed=True, message="the partition is down")
    assert chosen("60s", replace(FARM, resources=[closed, week, day])) == {"farm": "day"}
    shut = replace(FARM, resources=[closed, week])
    result = found({"placement": {"queue": "short"}}, shut)
    assert names(result) == []
    assert "5 free cores" in found({}, replace(FARM, resources=[closed, week, day])).why
    assert result.closed == {"farm": "closed by those who run it: queue short (the partition is down)"}
    check_placement(ParseDict({"placement": {"queue": "short"}}, JobSpec()), [shut])


def test_backend_where_it_failed_is_the_last_choice() -> None:
    spec = JobSpec()
    needs = Needs.of(spec, avoid=frozenset({"small"}))
    assert names(match(spec, needs, [replace(SMALL, priority=9), LONG])) == ["long"]
    assert match(spec, needs, [SMALL, LONG]).others == ["small excluded: it failed there"]
    assert names(match(spec, needs, [SMALL])) == ["small"]
    assert sorted(names(match(spec, needs, [SMALL, DOWN]))) == ["down", "small"]


def test_needs_that_grew_are_what_counts() -> None:
    spec = ParseDict({"resources": {"memoryBytes": 800}}, JobSpec())
    assert names(match(spec, Needs.of(spec), [SMALL])) == ["small"]
    assert names(match(spec, Needs.of(spec, memory_factor=1.5), [SMALL])) == []
