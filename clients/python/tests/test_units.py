"""Sizes, times and counts as people write them."""

from datetime import timedelta

import pytest

from khomas.client.errors import UsageError
from khomas.client.units import count, duration, quoted, show_duration, show_size, size


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2400MB", 2_400_000_000), ("2.3GiB", 2_469_606_195), ("2 GiB", 2 * 2**30), ("0B", 0), ("1kB", 1000)],
)
def test_sizes_are_decimal_or_binary_by_their_unit(text: str, expected: int) -> None:
    assert size(text) == expected


@pytest.mark.parametrize(
    ("text", "seconds"), [("24h", 86400), ("1d", 86400), ("86400s", 86400), ("1h30min", 5400), ("90m", 5400)]
)
def test_times_take_one_or_more_parts(text: str, seconds: int) -> None:
    assert duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["2400", "2400XB", "", "MB", 2400])
def test_a_size_without_unit_is_refused_with_an_example(text: object) -> None:
    with pytest.raises(UsageError, match=r"memory: .* needs a unit, such as \d+MB"):
        size(text, "memory")


@pytest.mark.parametrize("text", ["90", "1h30", "soon"])
def test_a_time_without_unit_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="needs a unit"):
        duration(text)


def test_counts_may_be_written_as_powers() -> None:
    assert count("2e8") == 200_000_000
    with pytest.raises(UsageError, match="no whole number"):
        count("1.5")


def test_figures_are_shown_for_people() -> None:
    assert show_size(2_400_000_000) == "2.4 GB"
    assert show_duration(725) == "12:05"
    assert show_duration(90_000) == "1 d 1:00:00"


def test_texts_in_filters_keep_their_quotes_and_backslashes() -> None:
    assert quoted('a"b\\c') == '"a\\"b\\\\c"'
