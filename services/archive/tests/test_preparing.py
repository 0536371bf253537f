"""From a dataset to a release."""

from pathlib import Path
from uuid import uuid4

import pytest
from astropy.io import fits

from khomas.api.archive.v1.archive_service_pb2 import ExplainReleaseRequest
from khomas.api.archive.v1.release_pb2 import MappingRule, Release
from khomas.api.catalog.v1.catalog_service_pb2 import BatchDeleteFilesRequest, GetDatasetRequest, ListFilesRequest
from khomas.api.catalog.v1.dataset_pb2 import Dataset
from khomas.archive.testing import Archive, event_list, event_rule, told

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
    assert (catalogued.origin, catalogued.owner) == (release.uid, release.owner)
    dataset = await archive.catalog.GetDataset(GetDatasetRequest(name="datasets/releases/crab/1"))
    assert dataset.owner == release.owner
    assert (catalogued.checksums.adler32, catalogued.size_bytes) == (product.adler32, product.size_bytes)
    [record] = await archive.records(NAME)
    assert (record.obs_id, record.obs_collection, record.dataproduct_type) == ("42", "crab", "event")
    assert record.s_region == "CIRCLE ICRS 83.63 22.052 2.5"


async def test_published_fits_files_pass_fitsverify(archive: Archive, run_file: Path) -> None:
    await archive.store(DATASET, {f"/hess/dl3/{run_file.name}": run_file})
    await archive.create(NAME, DATASET)
    [product] = (await archive.settled(NAME)).products

    copy = await archive.path(product.file)

    assert told("fitsverify", "-q", str(copy)).startswith("verification OK")


async def test_other_files_are_released_as_they_are(archive: Archive, tmp_path: Path, run_file: Path) -> None:
    picture, result = tmp_path / "sky.png", tmp_path / "spectrum.json"
    picture.write_bytes(b"\x89PNG")
    result.write_text("{}")
    await archive.store(DATASET, {f"/hess/{path.name}": path for path in (picture, result, run_file)})
    json_rule = MappingRule(match="*.json", columns={"calib_level": "4", "access_format": "#format"})

    await archive.create(NAME, DATASET, event_rule(), json_rule)
    release = await archive.settled(NAME)

    products = {product.source: product for product in release.products}
    assert products["/hess/sky.png"].file == "/hess/sky.png"
    assert not products["/hess/sky.png"].has_record
    assert products["/hess/spectrum.json"].has_record
    assert {record.obs_id: record.access_format for record in await archive.records(NAME)} == {
        "42": "application/fits",
        "spectrum.json": "application/json",
    }


async def test_file_by_reference_is_not_copied(archive: Archive, run_file: Path) -> None:
    await archive.store(DATASET, {f"/hess/dl3/{run_file.name}": run_file})

    await archive.create(NAME, DATASET, event_rule(by_reference=True))
    [product] = (await archive.settled(NAME)).products

    assert product.file == product.source == f"/hess/dl3/{run_file.name}"
    assert product.has_record
    assert not (await archive.file(f"/hess/releases/crab/1/{run_file.name}")).name


async def test_files_of_a_release_are_a_closed_dataset(archive: Archive, run_file: Path) -> None:
    await archive.store(DATASET, {f"/hess/dl3/{run_file.name}": run_file})
    await archive.create(NAME, DATASET)
    release = await archive.settled(NAME)

    dataset = await archive.catalog.GetDataset(GetDatasetRequest(name="datasets/releases/crab/1"))

    assert (dataset.state, dataset.file_count, dataset.origin) == (Dataset.STATE_CLOSED, 1, release.uid)


@pytest.mark.parametrize("settings", [{"poll": 2}])
async def test_content_is_that_of_the_moment_of_creation(archive: Archive, tmp_path: Path) -> None:
    first, late = event_list(tmp_path / "a_obs_id_1.fits.gz", 1), event_list(tmp_path / "a_obs_id_2.fits.gz", 2)
    await archive.store(DATASET, {"/hess/a_obs_id_1.fits.gz": first})
    await archive.create(NAME, DATASET)
    await archive.store(DATASET, {"/hess/a_obs_id_2.fits.gz": late})

    release = await archive.settled(NAME)

    assert [product.source for product in release.products] == ["/hess/a_obs_id_1.fits.gz"]


@pytest.mark.parametrize("settings", [{"poll": 2}])
async def test_file_deleted_after_the_creation_fails_the_release(archive: Archive, tmp_path: Path) -> None:
    runs = {f"/hess/a_obs_id_{n}.fits.gz": event_list(tmp_path / f"a_obs_id_{n}.fits.gz", n) for n in (1, 2)}
    await archive.store(DATASET, runs)
    await archive.create(NAME, DATASET)
    deletion = BatchDeleteFilesRequest(names=["/hess/a_obs_id_2.fits.gz"], reason="wrong", request_id=str(uuid4()))
    await archive.catalog.BatchDeleteFiles(deletion)

    release = await archive.settled(NAME)

    assert release.state == Release.STATE_FAILED
    assert list(release.problems) == ["/hess/a_obs_id_2.fits.gz: was deleted"]


async def test_equal_content_has_an_equal_digest_in_every_version(archive: Archive, tmp_path: Path) -> None:
    runs = {f"/hess/a_obs_id_{n}.fits.gz": event_list(tmp_path / f"a_obs_id_{n}.fits.gz", n) for n in (1, 2)}
    await archive.store(DATASET, runs)
    await archive.create(NAME, DATASET)
    first = await archive.settled(NAME)
    await archive.create("releases/crab/2", DATASET)
    second = await archive.settled("releases/crab/2")
    await archive.create("releases/crab/3", DATASET, event_rule(columns={"s_fov": "4"}))
    third = await archive.settled("releases/crab/3")

    assert first.content_digest == second.content_digest
    assert third.content_digest != first.content_digest
    assert [one.publisher_did for one in first.products] == [one.publisher_did for one in second.products]
    assert [one.file for one in first.products] != [one.file for one in second.products]


async def test_problems_fail_the_release_and_leave_no_files(archive: Archive, tmp_path: Path) -> None:
    broken = tmp_path / "b_obs_id_2.fits.gz"
    broken.write_bytes(b"no FITS")
    runs = {
        "/hess/a_obs_id_1.fits.gz": event_list(tmp_path / "a_obs_id_1.fits.gz", 1),
        "/hess/b_obs_id_2.fits.gz": broken,
    }
    await archive.store(DATASET, runs)

    await archive.create(NAME, DATASET, event_rule(columns={"obs_id": "@NOTHING"}))
    release = await archive.settled(NAME)

    assert release.state == Release.STATE_FAILED
    assert list(release.problems) == [
        "/hess/a_obs_id_1.fits.gz: obs_id: must not be NULL, and needs the card NOTHING",
        "/hess/b_obs_id_2.fits.gz: the file does not begin with SIMPLE",
    ]
    listed = await archive.catalog.ListFiles(ListFilesRequest(directory="/hess/releases"))
    assert not listed.files
    explained = await archive.stub.ExplainRelease(ExplainReleaseRequest(name=NAME))
    assert (explained.state, explained.reason, len(explained.details)) == ("FAILED", "CONTENT_INVALID", 2)


async def test_files_of_the_same_name_are_refused(archive: Archive, tmp_path: Path) -> None:
    runs = {f"/hess/{n}/a_obs_id_1.fits.gz": event_list(tmp_path / f"{n}.fits.gz", n) for n in (1, 2)}
    await archive.store(DATASET, runs)

    await archive.create(NAME, DATASET)
    release = await archive.settled(NAME)

    assert release.state == Release.STATE_FAILED
    assert [problem.split(":")[0] for problem in release.problems] == list(runs)


async def test_bytes_that_are_not_the_catalogued_ones_fail_the_release(archive: Archive, run_file: Path) -> None:
    await archive.store(DATASET, {"/hess/a_obs_id_1.fits.gz": run_file})
    stored = await archive.path("/hess/a_obs_id_1.fits.gz")
    stored.write_bytes(stored.read_bytes()[:-1] + b"x")

    await archive.create(NAME, DATASET)
    release = await archive.settled(NAME)

    assert release.state == Release.STATE_FAILED
    assert "its Adler-32 is" in release.problems[0]


@pytest.mark.parametrize("settings", [{"local_paths": False, "access_url": "https://data.example.org/{file_name}"}])
async def test_bytes_come_and_go_over_http_where_storage_is_elsewhere(archive: Archive, run_file: Path) -> None:
    await archive.store(DATASET, {f"/hess/dl3/{run_file.name}": run_file})

    await archive.create(NAME, DATASET)
    release = await archive.settled(NAME)

    assert release.state == Release.STATE_READY, release.problems
    assert (await archive.path(release.products[0].file)).stat().st_size == release.products[0].size_bytes
    assert (await archive.records(NAME))[0].access_url == f"https://data.example.org/{run_file.name}"


async def test_terms_of_use_go_with_the_copies(archive: Archive, run_file: Path) -> None:
    await archive.store(DATASET, {f"/hess/dl3/{run_file.name}": run_file})

    await archive.create(NAME, DATASET, terms="Say thanks.")
    release = await archive.settled(NAME)

    name = fits.getheader(await archive.path(release.products[0].file))["KHTERMS"]
    assert name == "/hess/releases/crab/1/TERMS-OF-USE.txt"
    assert (await archive.path(name)).read_text() == "Say thanks."
    dataset = await archive.catalog.GetDataset(GetDatasetRequest(name="datasets/releases/crab/1"))
    assert dataset.file_count == 2
