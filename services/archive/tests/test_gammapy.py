"""What gammapy makes of an export. `make demo` installs it."""

import shutil
from pathlib import Path

import pytest

from khomas.archive.testing import Archive

NAME = "releases/crab/1"
data = pytest.importorskip("gammapy.data", reason="gammapy is there once `make demo` has run")


async def test_gammapy_opens_the_exported_indexes(ready: Archive, tmp_path: Path) -> None:
    export = await ready.export(NAME, "gadf-index", base_dir="data")
    store = tmp_path / "store"
    (store / "data").mkdir(parents=True)
    for name in export.files:
        shutil.copy(await ready.path(name), store / name.rpartition("/")[2])
    for product in (await ready.get(NAME)).products:
        shutil.copy(await ready.path(product.file), store / "data")

    opened = data.DataStore.from_dir(store)

    assert list(opened.obs_table["OBS_ID"]) == [1, 2]
    assert len(opened.obs(1, required_irf=["aeff"]).events.table) == 100
    assert set(opened.hdu_table["HDU_TYPE"]) == {"events", "gti", "aeff"}
