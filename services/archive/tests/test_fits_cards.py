"""Published copies of FITS files."""

import gzip
import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from khomas.archive.fits_cards import NotFits, content_digest, read_hdus, write_copy
from khomas.archive.testing import event_list, told
from khomas.storage import fits as storage_fits

CARDS = {
    "KHRELEAS": ("releases/crab/1", "release"),
    "KHFILE": ("/hess/" + "very/long/" * 12 + "it's.fits", "file that was released"),
}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Give an uncompressed image with scaling, and a table with arrays of many lengths."""
    path = tmp_path / "image.fits"
    primary = fits.PrimaryHDU(np.arange(600, dtype=">i2").reshape(20, 30))
    primary.header["BSCALE"], primary.header["BZERO"] = 2.0, 10.0
    arrays = np.array([np.arange(3.0), np.arange(2.0)], dtype=object)
    table = fits.BinTableHDU.from_columns([fits.Column("A", "PD()", array=arrays)], name="LISTS")
    fits.HDUList([primary, table, fits.ImageHDU(np.zeros(5))]).writeto(path)
    return path


def fitsverify(path: Path) -> str:
    """Return what fitsverify says; "OK" without errors and warnings."""
    said = told("fitsverify", "-q", str(path))
    return "OK" if said.startswith("verification OK") else said


@pytest.mark.parametrize("name", ["copy.fits", "copy.fits.gz"])
def test_copy_has_cards_and_right_checksums_and_the_same_data(tmp_path: Path, image: Path, name: str) -> None:
    copy = tmp_path / name

    write_copy(image, copy, CARDS)

    assert fitsverify(copy) == "OK"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with fits.open(copy, checksum=True) as new, fits.open(image) as old:
            assert [hdu.verify_checksum() and hdu.verify_datasum() for hdu in new] == [1, 1, 1]
            assert (new[0].data == old[0].data).all()
            assert (new["LISTS"].data["A"][0] == old["LISTS"].data["A"][0]).all()
            assert {key: new[0].header[key] for key in CARDS} == {key: text for key, (text, _) in CARDS.items()}
    assert content_digest(read_hdus(copy)) == content_digest(read_hdus(image))


def test_copy_of_event_list_passes_fitsverify(tmp_path: Path) -> None:
    source, copy = event_list(tmp_path / "run.fits.gz", run=1), tmp_path / "copy.fits.gz"

    write_copy(source, copy, CARDS)

    assert fitsverify(copy) == "OK"


def test_names_that_a_card_cannot_take_are_encoded(tmp_path: Path, image: Path) -> None:
    copy = tmp_path / "copy.fits"

    write_copy(image, copy, {"KHFILE": ("/hess/Übung 100%.fits", "file")})

    assert fits.getheader(copy)["KHFILE"] == "/hess/%C3%9Cbung 100%.fits"
    assert fitsverify(copy) == "OK"


def test_wrong_checksums_of_the_source_are_replaced(tmp_path: Path) -> None:
    source, copy = tmp_path / "source.fits", tmp_path / "copy.fits"
    fits.PrimaryHDU(np.arange(10)).writeto(source, checksum=True)
    fits.setval(source, "CHECKSUM", value="0" * 16)
    fits.setval(source, "DATASUM", value="7")

    write_copy(source, copy, {})

    assert fitsverify(copy) == "OK"


def test_same_source_and_cards_give_the_same_bytes(tmp_path: Path, image: Path) -> None:
    first, second = tmp_path / "first.fits.gz", tmp_path / "second.fits.gz"

    write_copy(image, first, CARDS)
    write_copy(image, second, CARDS)

    assert first.read_bytes() == second.read_bytes()


def test_copy_of_a_copy_has_each_card_once(tmp_path: Path, image: Path) -> None:
    first, second = tmp_path / "first.fits", tmp_path / "second.fits"

    write_copy(image, first, CARDS)
    write_copy(first, second, {**CARDS, "KHRELEAS": ("releases/crab/2", "release")})

    header = fits.getheader(second)
    assert header["KHRELEAS"] == "releases/crab/2"
    assert header.count("KHRELEAS") == header.count("KHFILE") == header.count("CHECKSUM") == 1


def test_content_digest_is_that_of_the_storage(tmp_path: Path, image: Path) -> None:
    for path in (image, event_list(tmp_path / "run.fits.gz", run=1)):
        assert content_digest(read_hdus(path)) == storage_fits.content_digest(
            storage_fits.read_hdus(path, datasums=True)
        )


def test_sizes_are_those_of_the_file(image: Path) -> None:
    assert sum(hdu.size_bytes for hdu in read_hdus(image)) == image.stat().st_size


def test_cards_without_a_value_are_left_out(image: Path) -> None:
    fits.setval(image, "NOTHING", value=None)

    assert "NOTHING" not in read_hdus(image)[0].read().cards


@pytest.mark.parametrize("change", [lambda content: b"no FITS", lambda content: content[:5000], lambda content: b""])
@pytest.mark.parametrize("zipped", [False, True])
def test_broken_files_are_told(tmp_path: Path, image: Path, change: object, zipped: bool) -> None:
    content = change(image.read_bytes())  # type: ignore[operator]  # one of the functions above
    broken = tmp_path / "broken.fits"
    broken.write_bytes(gzip.compress(content) if zipped else content)

    with pytest.raises(NotFits):
        read_hdus(broken)


def test_cut_compressed_file_is_told(tmp_path: Path) -> None:
    path = event_list(tmp_path / "run.fits.gz", run=1)
    path.write_bytes(path.read_bytes()[:-20])

    with pytest.raises(NotFits):
        read_hdus(path)
