"""Real runs, where they are at hand: the folder that KHOMAS_TEST_DATA names."""

import os
from pathlib import Path

import pytest
from astropy.table import Table

from khomas.api.archive.v1.release_pb2 import Release
from khomas.archive.testing import Archive, event_rule

DATA = Path(os.environ.get("KHOMAS_TEST_DATA", Path(__file__).parents[4] / "shared" / "data")) / "hess-dl3-dr1"
CRAB = (23523, 23526, 23559, 23592)
DATASET = "datasets/hess/dl3"
NAME = "releases/crab/1"

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the real runs are no part of the repository")


@pytest.fixture
async def ready(archive: Archive) -> Archive:
    """Give a release of the four Crab runs by reference."""
    runs = [DATA / "data" / f"hess_dl3_dr1_obs_id_{run:06}.fits.gz" for run in CRAB]
    await archive.store(DATASET, {f"/hess/dl3/{path.name}": path for path in runs})
    await archive.create(NAME, DATASET, event_rule(by_reference=True))
    assert (await archive.settled(NAME)).state == Release.STATE_READY
    return archive


async def test_records_have_the_figures_of_the_headers(ready: Archive) -> None:
    record = (await ready.records(NAME))[0]

    # The number that gammapy's own ObsCore table has, to the last digit.
    assert record.t_min == 53343.92234009259
    assert (record.obs_id, record.target_name, record.facility_name) == ("23523", "Crab Nebula", "HESS")
    assert (record.s_ra, record.s_dec) == (83.633333333333, 21.514444444444)
    assert record.t_exptime == 1581.73681640625


async def test_indexes_equal_those_that_came_with_the_runs(ready: Archive) -> None:
    export = await ready.export(NAME, "gadf-index", base_dir="data")
    ours = Table.read(await ready.path(export.files[1]))
    theirs = Table.read(DATA / "hdu-index.fits.gz")

    def rows(table: Table) -> list[tuple[object, ...]]:
        names = ("OBS_ID", "HDU_TYPE", "HDU_CLASS", "FILE_DIR", "FILE_NAME")
        wanted = table[[run in CRAB for run in table["OBS_ID"]]]
        # The index that came with the runs gives the size of an EVENTS with wider rows than it has.
        return sorted(
            (*(row[name] for name in names), row["HDU_NAME"].lower(), row["SIZE"] if row["HDU_TYPE"] != "events" else 0)
            for row in wanted
        )

    assert len(ours) == 24
    assert rows(ours) == rows(theirs)
