"""Exporters and what they write."""

from pathlib import Path

import grpc
import pytest
from astropy.io import fits
from astropy.io.votable import parse_single_table

from khomas.api.archive.v1.archive_service_pb2 import ListExportersRequest
from khomas.archive.obscore import COLUMNS
from khomas.archive.testing import Archive, event_list, told
from khomas.kit.boundary.status import reason_of

DATASET = "datasets/hess/dl3"
NAME = "releases/crab/1"


async def test_obscore_table_is_what_votlint_wants(ready: Archive) -> None:
    export = await ready.export(NAME, "obscore")
    path = await ready.path(export.files[0])

    # It exits with 0 whatever it finds; it prints nothing if all is well.
    said = told("stilts", "votlint", f"votable={path}")

    assert list(export.files) == ["/hess/releases/crab/1/obscore.vot"]
    assert said == ""


async def test_obscore_table_has_the_records(ready: Archive) -> None:
    export = await ready.export(NAME, "obscore", timescale="TT")
    table = parse_single_table(str(await ready.path(export.files[0])))

    rows = table.to_table()
    assert table.utype == "ivo://ivoa.net/std/ObsCore#core-1.1"
    assert rows.colnames == [column.name for column in COLUMNS]
    records = await ready.records(NAME)
    assert list(rows["obs_publisher_did"]) == [record.obs_publisher_did for record in records]
    assert list(rows["t_min"]) == [record.t_min for record in records]
    assert list(rows["target_name"]) == ["a < b & c"] * 2
    assert rows["s_resolution"].mask.all()


async def test_indexes_pass_fitsverify(ready: Archive) -> None:
    export = await ready.export(NAME, "gadf-index")

    for name in export.files:
        assert told("fitsverify", "-q", str(await ready.path(name))).startswith("verification OK")


async def test_index_of_another_dataset(ready: Archive, tmp_path: Path) -> None:
    await ready.store("datasets/other", {"/hess/other/run7.fits": event_list(tmp_path / "run7.fits", 7)})

    export = await ready.export(NAME, "gadf-index", dataset="other")

    with fits.open(await ready.path(export.files[1])) as hdus:
        table = hdus["HDU_INDEX"].data
        assert [tuple(row)[:5] for row in table] == [
            (7, "aeff", "aeff_2d", "", "run7.fits"),
            (7, "events", "events", "", "run7.fits"),
            (7, "gti", "gti", "", "run7.fits"),
        ]


async def test_exports_are_noted_and_catalogued_with_their_release(ready: Archive) -> None:
    await ready.export(NAME, "obscore")
    release = await ready.get(NAME)
    file = await ready.file("/hess/releases/crab/1/obscore.vot")

    assert [(export.exporter, list(export.files)) for export in release.exports] == [
        ("obscore", ["/hess/releases/crab/1/obscore.vot"])
    ]
    assert file.origin == release.uid
    assert sorted(file.parents) == sorted(product.file for product in release.products)


async def test_repeated_export_gives_the_same_files(ready: Archive) -> None:
    first = await ready.export(NAME, "gadf-index")
    second = await ready.export(NAME, "gadf-index")

    assert list(first.files) == list(second.files)


async def test_export_with_other_options_cannot_replace_files(ready: Archive) -> None:
    await ready.export(NAME, "gadf-index")
    with pytest.raises(grpc.aio.AioRpcError, match="made before with other options"):
        await ready.export(NAME, "gadf-index", base_dir="elsewhere")

    assert len((await ready.get(NAME)).exports) == 1


async def test_unknown_exporter_and_option_are_refused_with_the_known_ones(ready: Archive) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await ready.export(NAME, "obscor")
    with pytest.raises(grpc.aio.AioRpcError, match="timescale") as option:
        await ready.export(NAME, "obscore", colour="red")

    assert reason_of(unknown.value) == "EXPORTER_UNKNOWN"
    assert "obscore" in (unknown.value.details() or "")
    assert option.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_installed_exporters_are_listed(archive: Archive) -> None:
    listed = await archive.stub.ListExporters(ListExportersRequest())

    assert [exporter.name for exporter in listed.exporters] == ["gadf-index", "obscore"]
    assert all(exporter.description for exporter in listed.exporters)
