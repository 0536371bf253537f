"""How good a place is for a job, and why."""

import csv
from datetime import timedelta
from pathlib import Path

import pytest

from khomas.kit.config import ConfigError
from khomas.scheduler.ranking import Facts, load_ranking
from khomas.scheduler.ranking.response_time import response_time_linear
from khomas.scheduler.ranking.weighted import weighted

ROWS = list(csv.DictReader((Path(__file__).parent / "data/hess_computing_elements.csv").read_text().splitlines()))
PLACES = [
    Facts(
        row["element"],
        expected_wait=timedelta(seconds=float(row["response_time_s"])),
        in_use=row["in_use"] == "true",
    )
    for row in ROWS
]
HOUR = timedelta(hours=1)


@pytest.mark.parametrize("number", range(len(ROWS)), ids=[row["element"] for row in ROWS])
def test_computing_elements_have_the_priorities_of_the_production_manager(number: int) -> None:
    rank = response_time_linear(PLACES, HOUR)[number]
    assert f"{rank.value:.6f}" == ROWS[number]["priority"]


def test_response_time_that_is_not_known_counts_as_the_mean() -> None:
    places = [Facts("a", expected_wait=timedelta(0)), Facts("b", expected_wait=timedelta(hours=12)), Facts("c")]
    ranks = response_time_linear(places, HOUR)
    assert [round(rank.value, 6) for rank in ranks] == [0.444444, 0.222222, 0.333333]
    assert "not known" in ranks[2].why


def test_place_that_is_not_in_use_has_no_part_in_the_sum() -> None:
    places = [Facts("a", expected_wait=timedelta(0)), Facts("b", expected_wait=timedelta(0), in_use=False)]
    assert [rank.value for rank in response_time_linear(places, HOUR)] == [1.0, 0.0]


def test_default_weighs_wait_against_the_length_of_the_job() -> None:
    waits = Facts("a", expected_wait=HOUR, successes=38, sample=40)
    (short,) = weighted([waits], timedelta(hours=1))
    (long,) = weighted([waits], timedelta(hours=9))
    assert short.value == pytest.approx(42.5 / 45 / 2)
    assert long.value == pytest.approx(42.5 / 45 / (1 + 1 / 9))
    assert short.why == (
        "priority 1 x success rate 0.944 (38 of 40 recent jobs) / (1 + 60 min of expected wait / 60 min of run time)"
    )


def test_default_prefers_near_data_and_says_what_it_does_not_know() -> None:
    near, far = weighted([Facts("a", local=0.75), Facts("b", local=0.0)], HOUR)
    assert near.value == pytest.approx(1.75 * far.value)
    assert near.why == (
        "priority 1 x success rate 0.900 (no recent jobs) x 1.75 as 75% of its input is there; "
        "how long jobs wait there is not known"
    )


def test_default_is_nothing_where_the_limits_do_not_fit() -> None:
    assert weighted([Facts("a", fits=False)], HOUR)[0].value == 0.0


def test_few_failures_weigh_less_than_many() -> None:
    once, often, never = weighted([Facts("a", sample=1), Facts("b", sample=20), Facts("c")], HOUR)
    assert never.value > once.value > often.value


def test_rankings_are_found_by_their_names() -> None:
    assert load_ranking("default") is weighted
    assert load_ranking("response-time-linear") is response_time_linear
    with pytest.raises(ConfigError, match="there is no ranking defualt, only default"):
        load_ranking("defualt")
