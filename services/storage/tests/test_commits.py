"""Uploads become files: completely, or not at all."""

from khomas.storage.testing import Storage, wanted


async def test_uploaded_file_is_catalogued_and_readable(storage: Storage) -> None:
    upload = await storage.open()
    status, answer = await storage.put(upload, b"photons")

    committed = await storage.commit(wanted(upload, "/hess/raw/run.fits", b"photons"))

    assert status == 201
    assert answer["size_bytes"] == 7
    assert committed.files[0].path == "hess/raw/run.fits"
    assert storage.catalog.files["/hess/raw/run.fits"].checksums.adler32 == answer["adler32"]
    download = await storage.download("/hess/raw/run.fits")
    async with storage.http.get(download.grants[0].url, headers=download.grants[0].headers) as body:
        assert await body.read() == b"photons"
        assert body.headers["Digest"] == f"adler32={answer['adler32']}"
