"""The shower production of H.E.S.S. from its plan to its end, through the wire."""

import csv
from pathlib import Path

import pytest

from khomas.api.bookkeeping.v1.production_pb2 import Cell, Production
from khomas.bookkeeping.testing import Client, FakeScheduler, shower_grid

TABLE = Path(__file__).parent / "data/hess_shower_production.csv"
ROWS = list(csv.DictReader(TABLE.read_text().splitlines()))


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """58,686 jobs are too many to count on both databases."""
    return f"sqlite+aiosqlite:///{tmp_path / 'bookkeeping.sqlite'}"


async def test_the_shower_production_is_accounted_exactly(client: Client, scheduler: FakeScheduler) -> None:
    zeniths = [float(row["zenith_deg"]) for row in ROWS]
    formula = "29999.58 * cos(radians(zenith)) ** -1.2"
    wanted = shower_grid(*zeniths, requested="2e8", each=formula, max_active_jobs=100_000)
    made = await client.begin(wanted)
    waiting = await client.waiting(scheduler, 58_653 + 33)
    open_row = [job for job in waiting if job.parameters["zenith"] == "70"]
    scheduler.finish(job for job in waiting if job.parameters["zenith"] != "70")
    scheduler.finish(open_row[:1807])
    cells = await client.cells_when(
        made.name, lambda cells: sum(one.progress.jobs_succeeded for one in cells) == 58_653
    )
    for row, cell in zip(ROWS, cells, strict=True):
        assert cell.parameters["zenith"] == float(row["zenith_deg"])
        assert cell.progress.produced_events == int(row["produced_showers"])
        assert cell.progress.jobs_succeeded == int(row["jobs"])
        assert (cell.state == Cell.STATE_DONE) == (row["status"] == "DONE")
    total = (await client.get(made.name)).progress
    assert total.produced_events == 2_796_712_909
    assert total.jobs_active == 33
    scheduler.finish(open_row[1807:])
    await client.in_state(made.name, Production.STATE_COMPLETED)
