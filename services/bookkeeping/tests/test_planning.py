"""The plan of a grid stage, against the shower production of H.E.S.S."""

import csv
import struct
from pathlib import Path

import pytest

from khomas.api.bookkeeping.v1 import production_pb2 as pb
from khomas.api.scheduler.v1 import splitter_pb2
from khomas.bookkeeping.planning import PlannedCell, plan
from khomas.bookkeeping.topup import Tally, jobs_needed
from khomas.kit.expressions import ExpressionError, Scalar

TABLE = Path(__file__).parent / "data/hess_shower_production.csv"
ROWS = list(csv.DictReader(TABLE.read_text().splitlines()))


def as_printed(value: Scalar) -> str:
    """Print as the production page does: six digits of a number in single precision."""
    (single,) = struct.unpack("f", struct.pack("f", float(value)))
    return f"{single:.6g}"


def shower_grid() -> pb.GridSource:
    zenith = splitter_pb2.Axis(name="zenith")
    for row in ROWS:
        zenith.values.add(number_value=float(row["zenith_deg"]))
    derived = {
        "emin": "0.005 / cos(radians(zenith))",
        "emax": "100 / cos(radians(zenith))",
        "rmax": "round(600 / cos(radians(zenith)))",
    }
    return pb.GridSource(
        grid=splitter_pb2.GridSplitter(
            axes=[zenith],
            derived=[splitter_pb2.Derived(name=name, expression=text) for name, text in derived.items()],
        ),
        requested_events="2e8",
        events_per_job="29999.58 * cos(radians(zenith)) ** -1.2",
    )


CELLS = list(plan(shower_grid()))
ROWS_AND_CELLS = list(zip(ROWS, CELLS, strict=True))


@pytest.mark.parametrize(("row", "cell"), ROWS_AND_CELLS, ids=[row["zenith_deg"] for row in ROWS])
def test_a_row_of_the_shower_production_is_planned_exactly(row: dict[str, str], cell: PlannedCell) -> None:
    assert as_printed(cell.parameters["emin"]) == row["emin_tev"]
    assert as_printed(cell.parameters["emax"]) == row["emax_tev"]
    assert str(cell.parameters["rmax"]) == row["rho_max_m"]
    assert cell.requested_events == int(row["requested_showers"])
    assert int(row["jobs"]) * cell.events_per_job == int(row["produced_showers"])


@pytest.mark.parametrize(("row", "cell"), ROWS_AND_CELLS, ids=[row["zenith_deg"] for row in ROWS])
def test_a_row_is_done_when_its_events_are_there(row: dict[str, str], cell: PlannedCell) -> None:
    to_go = jobs_needed(Tally(cell.requested_events, int(row["produced_showers"]), 0), cell.events_per_job)
    assert (to_go == 0) == (row["status"] == "DONE")
    assert int(row["jobs"]) + to_go == cell.jobs


def test_the_open_row_needs_33_more_jobs() -> None:
    (row,) = [row for row in ROWS if row["status"] != "DONE"]
    cell = CELLS[ROWS.index(row)]
    assert cell.jobs == 1840
    assert jobs_needed(Tally(cell.requested_events, int(row["produced_showers"]), 0), cell.events_per_job) == 33


def test_the_whole_production_adds_up() -> None:
    assert sum(int(row["jobs"]) for row in ROWS) == 58_653
    assert sum(int(row["produced_showers"]) for row in ROWS) == 2_796_712_909


def test_an_unknown_key_is_refused_with_the_known_ones() -> None:
    source = shower_grid()
    source.events_per_job = "30000 * cos(radians(zenit))"
    with pytest.raises(ExpressionError, match="no 'zenit', only"):
        plan(source)


def test_a_job_without_events_is_refused() -> None:
    source = shower_grid()
    source.events_per_job = "0.5"
    with pytest.raises(ExpressionError, match="at least 1 is needed"):
        list(plan(source))
