"""From a dataset to a release."""

from pathlib import Path

from astropy.io import fits

from khomas.api.archive.v1.release_pb2 import Release
from khomas.archive.testing import Archive

DATASET = "datasets/hess/dl3"
NAME = "releases/crab/1"


async def test_release_has_copies_with_cards_and_records(archive: Archive, run_file: Path) -> None:
    await archive.store(
        DATASET, {f"/hess/dl3/{run_file.name}": run_file}, origin="0190aaaa-bbbb-7ccc-8ddd-eeeeeeeeeeee"
    )

    created = await archive.create(NAME, DATASET)
    release = await archive.settled(NAME)

    assert created.state == Release.STATE_PREPARING
    assert (release.state, list(release.problems), release.record_count) == (Release.STATE_READY, [], 1)
    [product] = release.products
    assert product.file == f"/hess/releases/crab/1/{run_file.name}"
    assert product.source == f"/hess/dl3/{run_file.name}"
    assert product.publisher_did == "ivo://example.hess/crab?sim_obs_id_000042"
    copy = await archive.path(product.file)
    with fits.open(copy) as hdus:
        header = hdus[0].header
        assert header["KHRELEAS"] == NAME
        assert header["KHPUBDID"] == product.publisher_did
        assert header["KHFILE"] == product.source
        assert header["KHORIGIN"] == "0190aaaa-bbbb-7ccc-8ddd-eeeeeeeeeeee"
    catalogued = await archive.file(product.file)
    assert list(catalogued.parents) == [product.source]
    assert catalogued.origin == release.uid
    assert (catalogued.checksums.adler32, catalogued.size_bytes) == (product.adler32, product.size_bytes)
    [record] = await archive.records(NAME)
    assert (record.obs_id, record.obs_collection, record.dataproduct_type) == ("42", "crab", "event")
    assert record.s_region == "CIRCLE ICRS 83.63 22.052 2.5"
