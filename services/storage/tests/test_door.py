"""The HTTP door lets in who has a grant, for exactly what the grant says."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest

from khomas.api.storage.v1 import storage_service_pb2 as pb
from khomas.storage.grants.grants import Grant, Right
from khomas.storage.testing import Storage, until

NAMES = ["/hess/a b.fits", "/hess/Größe µ.fits", "/hess/100%41.fits", "/hess/q?x=1&y#z.fits", "/hess/~tilde+plus.fits"]


async def read(storage: Storage, name: str, **headers: str) -> tuple[int, bytes, Any]:
    grant = (await storage.download(name)).grants[0]
    async with storage.http.get(grant.url, headers={**grant.headers, **headers}) as answer:
        return answer.status, await answer.read(), answer.headers


@pytest.mark.parametrize("name", NAMES)
async def test_odd_names_come_back_as_they_went_in(storage: Storage, name: str) -> None:
    await storage.store(name, name.encode())

    status, body, _ = await read(storage, name)

    assert (status, body) == (200, name.encode())


async def test_empty_file_is_a_file(storage: Storage) -> None:
    committed = await storage.store("/hess/empty", b"")

    status, body, headers = await read(storage, "/hess/empty")

    assert committed.checksums.adler32 == "00000001"
    assert (status, body, headers["Digest"]) == (200, b"", "adler32=00000001")


async def test_range_gives_that_part(storage: Storage) -> None:
    await storage.store("/hess/digits", b"0123456789")

    status, body, headers = await read(storage, "/hess/digits", Range="bytes=2-4")

    assert (status, body, headers["Content-Range"]) == (206, b"234", "bytes 2-4/10")


async def test_range_past_the_end_is_refused(storage: Storage) -> None:
    await storage.store("/hess/digits", b"0123456789")

    status, _, headers = await read(storage, "/hess/digits", Range="bytes=10-")

    assert (status, headers["Content-Range"]) == (416, "bytes */10")


async def test_head_tells_size_and_digest(storage: Storage) -> None:
    await storage.store("/hess/digits", b"0123456789")
    grant = (await storage.download("/hess/digits")).grants[0]

    async with storage.http.head(grant.url, headers=grant.headers) as answer:
        assert (answer.status, answer.headers["Content-Length"]) == (200, "10")
        assert answer.headers["Digest"].startswith("adler32=")


async def test_compressed_neighbour_is_never_sent_instead(storage: Storage) -> None:
    await storage.store("/hess/events.fits", b"plain")
    await storage.store("/hess/events.fits.gz", b"other bytes")

    _, body, headers = await read(storage, "/hess/events.fits", **{"Accept-Encoding": "gzip, br"})

    assert body == b"plain"
    assert "Content-Encoding" not in headers


async def test_without_grant_nobody_gets_in(storage: Storage) -> None:
    await storage.store("/hess/secret", b"secret")
    url = (await storage.download("/hess/secret")).grants[0].url

    async with storage.http.get(url) as answer:
        assert answer.status == 401
    async with storage.http.get(url, headers={"Authorization": "Bearer " + "A" * 80}) as answer:
        assert answer.status == 401


async def test_address_that_is_a_grant_needs_no_headers_and_reads_this_file_alone(storage: Storage) -> None:
    await storage.store("/hess/a b.fits", b"events")
    await storage.store("/hess/other", b"secret")
    request = pb.BatchCreateDownloadsRequest(names=["/hess/a b.fits", "/hess/other"], in_url=True)
    ours, other = [one.grants[0] for one in (await storage.stub.BatchCreateDownloads(request)).downloads]
    address, _, right = ours.url.partition("?")
    elsewhere = other.url.partition("?")[0]

    async with storage.http.get(ours.url, headers={"Range": "bytes=1-3"}) as answer:
        read = answer.status, await answer.read(), answer.headers["Referrer-Policy"]
    statuses = []
    for method, url in (("GET", address), ("GET", f"{elsewhere}?{right}"), ("PUT", ours.url), ("DELETE", ours.url)):
        async with storage.http.request(method, url) as answer:
            statuses.append(answer.status)

    assert not ours.headers
    assert read == (206, b"ven", "no-referrer")
    assert statuses == [401, 403, 405, 405]


async def test_expired_grant_is_refused(storage: Storage) -> None:
    await storage.store("/hess/late", b"late")
    url = (await storage.download("/hess/late")).grants[0].url
    past = int((datetime.now(UTC) - timedelta(seconds=1)).timestamp())
    token = storage.parts.signer.token(Grant(Right.READ, "/files/local/hess/late", past))

    async with storage.http.get(url, headers={"Authorization": f"Bearer {token}"}) as answer:
        assert answer.status == 401


async def test_grant_for_another_path_is_refused(storage: Storage) -> None:
    await storage.store("/hess/mine", b"mine")
    await storage.store("/hess/yours", b"yours")
    mine, yours = [(await storage.download(name)).grants[0] for name in ("/hess/mine", "/hess/yours")]

    async with storage.http.get(yours.url, headers=mine.headers) as answer:
        assert answer.status == 403


async def test_changed_signature_is_refused(storage: Storage) -> None:
    await storage.store("/hess/mine", b"mine")
    grant = (await storage.download("/hess/mine")).grants[0]
    header = grant.headers["Authorization"]
    forged = header[:10] + ("A" if header[10] != "A" else "B") + header[11:]

    async with storage.http.get(grant.url, headers={"Authorization": forged}) as answer:
        assert answer.status == 401


async def test_reading_grant_does_not_write(storage: Storage) -> None:
    await storage.store("/hess/mine", b"mine")
    upload = await storage.open()
    reading = (await storage.download("/hess/mine")).grants[0]

    async with storage.http.put(f"{upload.grant.url}0", data=b"x", headers=reading.headers) as answer:
        assert answer.status == 403


async def test_path_out_of_the_root_is_refused_even_when_signed(storage: Storage) -> None:
    address = "/files/local/hess/../../../issuer.json"
    token = storage.parts.signer.token(Grant(Right.READ, address, 2**33))
    door = storage.served.http["storage"]

    reader, writer = await asyncio.open_connection("127.0.0.1", int(door.rpartition(":")[2]))
    target = quote(address).replace("..", "%2e%2e")
    writer.write(
        f"GET {target} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n".encode()
    )
    status = (await reader.readline()).split()[1]
    writer.close()

    assert status in {b"400", b"403", b"404"}


async def test_link_out_of_the_root_is_not_followed(storage: Storage) -> None:
    await storage.store("/hess/file", b"inside")
    target = storage.root / "hess" / "file"
    target.unlink()
    target.symlink_to("/etc/passwd")

    download = await storage.download("/hess/file")

    assert not download.grants
    assert "NO_REPLICA" in str(download.error)


async def test_interrupted_put_leaves_nothing(storage: Storage) -> None:
    upload = await storage.open()
    door = storage.served.http["storage"]
    _, writer = await asyncio.open_connection("127.0.0.1", int(door.rpartition(":")[2]))
    path = upload.grant.url.removeprefix(door)
    head = f"PUT {path}0 HTTP/1.1\r\nHost: x\r\nAuthorization: {upload.grant.headers['Authorization']}\r\n"
    writer.write(f"{head}Content-Length: 1000\r\n\r\n".encode() + b"x" * 500)
    await writer.drain()
    staging = storage.root / ".khomas" / "uploads" / upload.name.removeprefix("uploads/")

    async def something() -> bool:
        return any(staging.iterdir())

    async def nothing() -> bool:
        return not any(staging.iterdir())

    await until(something)
    writer.transport.abort()
    await until(nothing)

    assert not (await storage.uploads(upload))[0].files


async def test_wrong_digest_is_refused(storage: Storage) -> None:
    upload = await storage.open()

    status, answer = await storage.put(upload, b"bytes", Digest="adler32=00000001")

    assert (status, answer["reason"]) == (422, "CHECKSUM_MISMATCH")
    assert not (await storage.uploads(upload))[0].files


async def test_repeated_put_replaces_the_file(storage: Storage) -> None:
    upload = await storage.open()
    await storage.put(upload, b"first")

    await storage.put(upload, b"second, longer")

    assert [file.size_bytes for file in (await storage.uploads(upload))[0].files] == [14]


async def test_file_of_an_upload_can_be_taken_away(storage: Storage) -> None:
    upload = await storage.open()
    await storage.put(upload, b"wrong one")

    async with storage.http.delete(f"{upload.grant.url}0", headers=upload.grant.headers) as answer:
        assert answer.status == 204

    assert not (await storage.uploads(upload))[0].files


async def test_index_beyond_the_upload_is_refused(storage: Storage) -> None:
    upload = await storage.open(max_files=2)

    assert (await storage.put(upload, b"", index=1))[0] == 201
    assert (await storage.put(upload, b"", index=2))[0] == 404


async def test_committed_upload_takes_nothing_more(storage: Storage) -> None:
    upload = await storage.open()
    await storage.put(upload, b"bytes")
    await storage.commit(storage.wanted(upload, "/hess/file", b"bytes"))

    status, answer = await storage.put(upload, b"more")

    assert (status, answer["reason"]) == (409, "UPLOAD_STATE")
