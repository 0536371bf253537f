"""Grids of parameters."""

import pytest
from google.protobuf.struct_pb2 import NULL_VALUE, Value
from hypothesis import given
from hypothesis import strategies as st

from khomas.kit.expressions import ExpressionError
from khomas.kit.grid import Axis, axis_values, make_grid


def test_last_axis_runs_fastest() -> None:
    grid = make_grid([Axis("zenith", [0, 60]), Axis("seed", range(1, 4))])
    assert [(point["zenith"], point["seed"]) for point in grid] == [(0, 1), (0, 2), (0, 3), (60, 1), (60, 2), (60, 3)]


def test_derived_values_may_use_earlier_ones() -> None:
    derived = [("emin", "0.005 / cos(radians(zenith))"), ("emax", "emin * 20000")]
    grid = make_grid([Axis("zenith", [60])], derived)
    assert grid[0] == {"zenith": 60, "emin": pytest.approx(0.01), "emax": pytest.approx(200)}


def test_filter_keeps_only_some_points() -> None:
    grid = make_grid([Axis("a", range(10)), Axis("b", range(10))], [("sum", "a + b")], "sum == 3")
    assert (len(grid), grid[1]) == (4, {"a": 1, "b": 2, "sum": 3})


def test_a_huge_grid_costs_nothing() -> None:
    grid = make_grid([Axis("a", range(10**6)), Axis("b", range(10**6))])
    assert len(grid) == 10**12
    assert grid[10**12 - 1] == {"a": 999_999, "b": 999_999}


def test_whole_numbers_from_the_wire_are_whole() -> None:
    values = [Value(number_value=60), Value(number_value=0.5), Value(string_value="x"), Value(bool_value=True)]
    assert [(type(v), v) for v in axis_values(values)] == [(int, 60), (float, 0.5), (str, "x"), (bool, True)]


def test_value_that_is_no_scalar_is_refused() -> None:
    with pytest.raises(ExpressionError, match="a number, text"):
        axis_values([Value(null_value=NULL_VALUE)])


@pytest.mark.parametrize(
    ("derived", "keep", "problem"),
    [
        ([("x", "zenit + 1")], "", "there is no 'zenit'"),
        ([("zenith", "1")], "", "has a value already"),
        ([("x", "1 / zenith")], "", "divides by zero"),
        ([], "nope > 1", "there is no 'nope'"),
    ],
)
def test_bad_grid_is_refused(derived: list[tuple[str, str]], keep: str, problem: str) -> None:
    with pytest.raises(ExpressionError, match=problem):
        make_grid([Axis("zenith", [0, 60])], derived, keep)


def test_two_axes_of_one_name_are_refused() -> None:
    with pytest.raises(ExpressionError, match="two axes"):
        make_grid([Axis("a", [1]), Axis("a", [2])])


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_points_by_index_are_the_points_in_order(sizes: list[int]) -> None:
    grid = make_grid([Axis(f"a{n}", range(size)) for n, size in enumerate(sizes)])
    points = [tuple(point.values()) for point in grid]
    assert points == sorted(points)
    assert len(set(points)) == len(grid)
