"""The FITS reader agrees with astropy."""

import gzip
import hashlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits as astropy_fits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from khomas.storage import fits


def file_of(path: Path, *hdus: astropy_fits.hdu.base.ExtensionHDU) -> Path:
    content = BytesIO()
    astropy_fits.HDUList([astropy_fits.PrimaryHDU(), *hdus]).writeto(content)
    path.write_bytes(gzip.compress(content.getvalue()) if path.suffix == ".gz" else content.getvalue())
    return path


def expected_sums(path: Path) -> list[int]:
    with astropy_fits.open(path, disable_image_compression=True) as hdus:
        for hdu in hdus:
            hdu.add_datasum()
        return [int(hdu.header["DATASUM"]) for hdu in hdus]


def hdus() -> list[astropy_fits.hdu.base.ExtensionHDU]:
    text = astropy_fits.Column("NAME", "PA()", array=["a", "bcd", ""])
    image = np.arange(3000, dtype=">i2").reshape(30, 100)
    return [
        astropy_fits.ImageHDU(image, name="MAP"),
        astropy_fits.ImageHDU(np.full(1000, 0xFFFFFFFF, dtype=np.uint32)),
        astropy_fits.BinTableHDU.from_columns([text], name="names"),
        astropy_fits.CompImageHDU(image, name="PACKED"),
        astropy_fits.ImageHDU(name="EMPTY"),
    ]


@pytest.mark.parametrize("name", ["all.fits", "all.fits.gz"])
def test_datasums_are_those_of_astropy(tmp_path: Path, name: str) -> None:
    path = file_of(tmp_path / name, *hdus())

    read = fits.read_hdus(path, datasums=True)

    assert [hdu.datasum for hdu in read] == expected_sums(path)
    assert [hdu.name for hdu in read] == ["PRIMARY", "MAP", "2", "NAMES", "PACKED", "EMPTY"]


def test_digest_is_that_of_names_and_datasums(tmp_path: Path) -> None:
    path = file_of(tmp_path / "a.fits", astropy_fits.ImageHDU(np.ones(10), name="map"))
    total = expected_sums(path)[1]

    digest = fits.content_digest(fits.read_hdus(path, datasums=True))

    assert digest == hashlib.sha256(f"PRIMARY:0\nMAP:{total}\n".encode()).hexdigest()


def test_headers_alone_are_read_without_the_data(tmp_path: Path) -> None:
    path = file_of(tmp_path / "a.fits.gz", *hdus())

    read = fits.read_hdus(path, datasums=False)

    assert [hdu.datasum for hdu in read] == [None] * 6


@pytest.mark.parametrize("suffix", ["fits", "fits.gz"])
@pytest.mark.parametrize("datasums", [True, False])
@pytest.mark.parametrize("cut", [100, 2000, 4000, 8000])
def test_truncated_file_is_noticed(tmp_path: Path, suffix: str, datasums: bool, cut: int) -> None:
    path = file_of(tmp_path / f"a.{suffix}", astropy_fits.ImageHDU(np.random.default_rng(1).random(1000)))
    path.write_bytes(path.read_bytes()[:-cut])

    with pytest.raises(fits.NotFits):
        fits.read_hdus(path, datasums=datasums or suffix == "fits.gz")


@pytest.mark.parametrize("content", [b"", b"text", b"\x1f\x8bnot gzip", b"SIMPLE  =" + b" " * 2871])
def test_other_files_are_no_fits(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.fits").write_bytes(content)

    with pytest.raises(fits.NotFits):
        fits.read_hdus(tmp_path / "a.fits", datasums=True)


VALUES = st.one_of(
    st.booleans(),
    st.integers(-(2**62), 2**62),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60).map(str.rstrip),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=VALUES)
def test_any_card_reads_as_astropy_reads_it(tmp_path: Path, value: fits.CardValue) -> None:
    header = astropy_fits.Header()
    header["CARD"] = (value, "a comment / with a slash")
    path = file_of(tmp_path / "a.fits", astropy_fits.ImageHDU(header=header))

    read = fits.read_hdus(path, datasums=False)[1].cards["CARD"]

    with astropy_fits.open(path) as expected:
        assert read == expected[1].header["CARD"]
    path.unlink()
