"""How many streams a link may carry, what bounds them, and who gets the free ones."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from khomas.storage.links.adapting import Pace, adapted, begun
from khomas.storage.links.bounds import Limit, shared_out
from khomas.storage.links.bucket import Bucket
from khomas.storage.links.waiting import RUN_FILES, Offer, cut

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MIB = 1024 * 1024


def measured(pace: Pace, rate: float, *, errors: int = 0, waiting: bool = True, most: int = 32) -> Pace:
    """Return what becomes of a pace after a window of ten seconds with this rate."""
    later = pace.window_start + timedelta(seconds=10)
    window = Pace(
        pace.streams, pace.step, pace.rate_before, pace.window_start, int(rate * 10), 10 - min(errors, 10), errors
    )
    return adapted(window, later, waiting=waiting, most=most)


def climbed(rate_of: dict[int, float] | None, windows: int) -> list[int]:
    """Return the streams over time on a link whose rate depends on their number."""
    pace, streams = begun(2, NOW), []
    for _ in range(windows):
        rate = 100e6 * pace.streams if rate_of is None else rate_of.get(pace.streams, max(rate_of.values()))
        pace = measured(pace, rate)
        streams.append(pace.streams)
    return streams


def test_link_that_gets_faster_grows_to_the_most() -> None:
    assert climbed(None, 40)[-1] == 32


def test_link_that_gets_no_faster_stays_near_where_it_was() -> None:
    streams = climbed({2: 100e6}, 40)

    assert set(streams) <= {2, 3}
    assert streams.count(2) > 30


def test_link_finds_the_number_that_fills_it() -> None:
    streams = climbed({number: 50e6 * min(number, 8) for number in range(1, 40)}, 60)

    assert min(streams[20:]) >= 7
    assert max(streams[20:]) <= 11


def test_errors_halve_the_streams_down_to_one() -> None:
    pace = Pace(8, -1, 0.0, NOW)
    seen = []
    for _ in range(5):
        pace = measured(pace, 1e6, errors=5)
        seen.append(pace.streams)

    assert seen == [4, 2, 1, 1, 1]


def test_link_that_nobody_waits_for_does_not_grow() -> None:
    pace = begun(2, NOW)
    for _ in range(20):
        pace = measured(pace, 1e9, waiting=False)

    assert pace.streams == 2


@pytest.mark.parametrize(("seconds", "files"), [(1, 100), (100, 1)])
def test_window_that_tells_nothing_changes_nothing(seconds: int, files: int) -> None:
    pace = Pace(2, -9, 0.0, NOW, 10**9, files)

    assert adapted(pace, NOW + timedelta(seconds=seconds), waiting=True, most=32) == pace


def test_lower_bound_of_the_operator_counts_at_once() -> None:
    assert measured(Pace(20, -1, 0.0, NOW), 1e9, most=4).streams == 4


@given(st.lists(st.tuples(st.floats(0, 1e12), st.integers(0, 20), st.booleans()), max_size=60), st.integers(1, 64))
def test_streams_are_always_between_one_and_the_most(windows: list[tuple[float, int, bool]], most: int) -> None:
    pace = begun(2, NOW)
    for rate, errors, waiting in windows:
        pace = measured(pace, rate, errors=errors, waiting=waiting, most=most)
        assert 1 <= pace.streams <= max(most, 2)


def share(free: int, lanes: dict[str, int], running: dict[str, int] | None = None, *limits: Limit) -> dict[str, int]:
    sites = {"a": "north", "b": "north", "c": "south"}
    return shared_out(list(lanes), free, streams=lanes, running=running or {}, limits=limits, sites=sites)


def test_free_streams_go_to_the_links_that_have_fewest() -> None:
    assert share(6, {"a>c": 9, "b>c": 9}, {"a>c": 4}) == {"a>c": 1, "b>c": 5}


def test_link_gets_no_more_streams_than_it_may_carry() -> None:
    assert share(10, {"a>c": 2, "b>c": 3}, {"a>c": 1}) == {"a>c": 1, "b>c": 3}


def test_bound_of_a_destination_holds_for_all_links_to_it_together() -> None:
    assert share(10, {"a>c": 9, "b>c": 9}, {}, Limit("", "c", 3, 0)) == {"a>c": 2, "b>c": 1}


def test_bound_of_a_site_counts_what_runs_on_its_other_links() -> None:
    assert share(10, {"a>c": 9}, {"b>c": 2}, Limit("site:north", "", 3, 0)) == {"a>c": 1}


def test_full_bound_leaves_other_links_alone() -> None:
    assert share(10, {"a>c": 2, "c>a": 2}, {"a>c": 2}, Limit("a", "c", 2, 0)) == {"c>a": 2}


def offers(*sizes: int) -> list[Offer]:
    return [Offer(str(number), "a>b", float(number), size) for number, size in enumerate(sizes)]


def test_small_files_go_together_and_large_ones_alone() -> None:
    runs = cut(offers(1, 2, 10**9, 3, 4), 9)

    assert [run.members for run in runs] == [["0", "1"], ["2"], ["3", "4"]]


def test_runs_are_bounded_in_number_files_and_bytes() -> None:
    assert [len(run.members) for run in cut(offers(*[1] * 1000), 3)] == [RUN_FILES] * 3
    assert [len(run.members) for run in cut(offers(*[8 * MIB] * 20), 2)] == [8, 8]


def test_run_tells_to_which_turn_its_lane_comes() -> None:
    assert [run.turn for run in cut(offers(1, 2, 10**9), 9)] == [1.0, 2.0]


def test_bucket_lets_a_burst_go_and_then_its_rate() -> None:
    bucket = Bucket(100.0, 0.0)

    assert bucket.take(50, 0.0) == 0
    assert bucket.take(100, 0.0) == 1
    assert bucket.take(100, 1.0) == 1


def test_bucket_that_was_left_alone_is_no_fuller_than_its_burst() -> None:
    bucket = Bucket(100.0, 0.0)

    assert bucket.take(150, 1000.0) == 1


@given(st.lists(st.tuples(st.integers(1, 1000), st.floats(0, 5)), min_size=1, max_size=50))
def test_nobody_gets_more_than_the_rate_in_the_long_run(takes: list[tuple[int, float]]) -> None:
    bucket, now, sent = Bucket(100.0, 0.0), 0.0, 0
    for size, pause in takes:
        now += pause
        now += bucket.take(size, now)
        sent += size

    assert sent <= 100.0 * now + 50 + 1e-6


def test_bucket_fills_at_another_rate_from_its_change_on() -> None:
    bucket = Bucket(100.0, 0.0)
    assert bucket.take(150, 0.0) == pytest.approx(1.0)
    bucket.set_rate(50.0, 1.0)
    assert bucket.take(50, 1.0) == pytest.approx(1.0)
