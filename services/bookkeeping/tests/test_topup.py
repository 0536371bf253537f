"""The rule that decides how many more jobs a cell gets."""

from hypothesis import given
from hypothesis import strategies as st

from khomas.bookkeeping.topup import Tally, jobs_needed, observed_yield

EVENTS = 68_920


def test_an_untouched_cell_gets_the_planned_number_of_jobs() -> None:
    assert jobs_needed(Tally(200_000_000, 0, 0), EVENTS) == 2902


def test_a_cell_that_waits_for_enough_events_gets_none() -> None:
    assert jobs_needed(Tally(200_000_000, 0, 2902 * EVENTS), EVENTS) == 0


def test_a_lost_job_is_replaced() -> None:
    assert jobs_needed(Tally(200_000_000, 0, 2901 * EVENTS, failed=1), EVENTS) == 1


def test_the_open_row_of_the_shower_table_needs_33_more() -> None:
    assert jobs_needed(Tally(200_000_000, 196_429_935, 0, succeeded=1807), 108_705) == 33


def test_a_cell_that_has_its_events_gets_none() -> None:
    assert jobs_needed(Tally(200_000_000, 200_000_000, 0), EVENTS) == 0


def test_partial_outputs_are_counted_by_their_events_from_fifty_jobs_on() -> None:
    tally = Tally(200_000_000, 90 * EVENTS, 0, succeeded=100)
    assert observed_yield(tally, EVENTS) == 0.9
    assert jobs_needed(tally, EVENTS) == 3125


def test_a_broken_release_never_counts_as_less_than_half() -> None:
    assert observed_yield(Tally(200_000_000, 0, 0, failed=1000), EVENTS) == 0.5


@given(st.integers(1, 10**12), st.integers(0, 10**12), st.integers(1, 10**7))
def test_the_new_jobs_are_enough_and_not_one_more(requested: int, produced: int, events: int) -> None:
    needed = jobs_needed(Tally(requested, produced, 0), events)
    assert produced + needed * events >= requested
    assert needed == 0 or produced + (needed - 1) * events < requested
