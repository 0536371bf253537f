"""Which backend a job goes to, and why."""

from datetime import timedelta
from typing import Any

from google.protobuf.json_format import ParseDict

from khomas.api.scheduler.v1.job_spec_pb2 import JobSpec
from khomas.scheduler.backends.interface import ComputeResource
from khomas.scheduler.matching import Match, Needs, Offer, match

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
    assert result.why == "long: it has 0 of at most 1000 jobs; best of 4 that fit"


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


def test_needs_that_grew_are_what_counts() -> None:
    spec = ParseDict({"resources": {"memoryBytes": 800}}, JobSpec())
    assert names(match(spec, Needs.of(spec), [SMALL])) == ["small"]
    assert names(match(spec, Needs.of(spec, memory_factor=1.5), [SMALL])) == []
