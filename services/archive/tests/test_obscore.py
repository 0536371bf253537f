"""What may stand in an ObsCore record."""

import math

import pytest

from khomas.api.archive.v1.obscore_pb2 import ObsCoreRecord
from khomas.archive.obscore import COLUMNS, Record, problems, unit_vector

GOOD: Record = {"calib_level": 2, "obs_collection": "crab", "obs_id": "42", "obs_publisher_did": "ivo://a.b/crab?42"}


def test_columns_are_those_of_the_contract_in_its_order() -> None:
    assert [column.name for column in COLUMNS] == [field.name for field in ObsCoreRecord.DESCRIPTOR.fields]
    assert len(COLUMNS) == 30


def test_five_columns_are_enough() -> None:
    assert list(problems(GOOD)) == []


@pytest.mark.parametrize(
    ("changed", "column"),
    [
        ({"obs_id": None}, "obs_id"),
        ({"obs_id": ""}, "obs_id"),
        ({"calib_level": 5}, "calib_level"),
        ({"s_ra": 360.1, "s_dec": 0.0}, "s_ra"),
        ({"s_ra": 1.0, "s_dec": -90.1}, "s_dec"),
        ({"s_ra": 1.0}, "s_ra"),
        ({"t_min": 2.0, "t_max": 1.0}, "t_min"),
        ({"em_min": 2.0, "em_max": 1.0}, "em_min"),
        ({"t_exptime": -1.0}, "t_exptime"),
        ({"t_exptime": math.nan}, "t_exptime"),
        ({"s_xel1": -2}, "s_xel1"),
        ({"dataproduct_type": "picture"}, "dataproduct_type"),
    ],
)
def test_what_obscore_forbids_is_told_by_column(changed: Record, column: str) -> None:
    assert [name for name, _ in problems({**GOOD, **changed})] == [column]


def test_limits_themselves_are_allowed() -> None:
    limits = {"calib_level": 4, "s_ra": 360.0, "s_dec": -90.0, "s_xel1": -1, "t_min": 1.0, "t_max": 1.0}

    assert list(problems({**GOOD, **limits})) == []


def test_unit_vector_points_to_the_pole() -> None:
    assert unit_vector({"s_ra": 10.0, "s_dec": 90.0}) == pytest.approx((0, 0, 1))
    assert unit_vector({"s_ra": 90.0, "s_dec": 0.0}) == pytest.approx((0, 1, 0))
    assert unit_vector({}) is None
