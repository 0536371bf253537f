"""Bytes, checksums, folders and properties as the tree of WebDAV takes and gives them."""

import asyncio
import base64
import hashlib
from pathlib import Path
from xml.etree import ElementTree

import pytest

from khomas.storage.door.testing import Client
from khomas.storage.testing import Storage, until


def names(folder: Path) -> list[str]:
    """Tell what is in a folder."""
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def everybody(storage: Storage) -> Client:
    return Client(storage, "storage.read:/", "storage.modify:/")


@pytest.fixture
def planted(storage: Storage) -> None:
    """Give every place of the table of scopes a file."""
    for path in ("foo/bar", "foobar", "foo/deep/er", "secret"):
        target = storage.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"there")


# ------------------------------------------------------------------------------------------- bytes and checksums


async def test_upload_is_invisible_until_it_is_complete(storage: Storage, everybody: Client) -> None:
    door = storage.served.http["storage"]
    _, writer = await asyncio.open_connection("127.0.0.1", int(door.rpartition(":")[2]))
    head = f"PUT /dav/local/file HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {everybody.token}\r\n"
    writer.write(f"{head}Content-Length: 1000\r\n\r\n".encode() + b"x" * 500)
    await writer.drain()
    incoming = storage.root / ".khomas/incoming"

    async def something() -> bool:
        return incoming.is_dir() and any(incoming.iterdir())

    async def nothing() -> bool:
        return not any(incoming.iterdir())

    await until(something, 60)
    assert await everybody.status("GET", "file") == 404
    assert b"file" not in (await everybody.ask("GET", ""))[1].split(b"<table>")[1]
    writer.transport.abort()
    await until(nothing, 60)
    assert await everybody.status("GET", "file") == 404


async def test_nothing_is_overwritten_unless_it_is_meant(storage: Storage, everybody: Client) -> None:
    assert await everybody.status("PUT", "file", b"first") == 201
    assert await everybody.status("PUT", "file", b"second", If_None_Match="*") == 412
    assert await everybody.status("PUT", "file", b"second", Overwrite="F") == 412
    assert await Client(storage, "storage.create:/").status("PUT", "file", b"second") == 403
    assert (storage.root / "file").read_bytes() == b"first"
    assert await everybody.status("PUT", "file", b"second") == 204
    assert (storage.root / "file").read_bytes() == b"second"


async def test_two_uploads_of_one_name_do_not_meet(storage: Storage) -> None:
    client = Client(storage, "storage.create:/")
    done = await asyncio.gather(*(client.status("PUT", "file", bytes([number]) * 300_000) for number in range(6)))
    assert sorted(set(done)) in ([201, 403], [201, 412], [201, 403, 412])
    assert done.count(201) == 1
    assert (storage.root / "file").read_bytes() == bytes([done.index(201)]) * 300_000


async def test_body_that_is_not_as_announced_leaves_nothing(storage: Storage, everybody: Client) -> None:
    for header, value in (
        ("Digest", "adler32=00000001"),
        ("Digest", "md5=" + base64.b64encode(bytes(16)).decode()),
        ("Repr-Digest", f"sha-256=:{base64.b64encode(bytes(32)).decode()}:"),
        ("Content-Digest", "adler=:AAAAAQ==:"),
    ):
        assert await everybody.status("PUT", "file", b"content", **{header: value}) == 422, header
    assert await everybody.status("GET", "file") == 404
    assert not any((storage.root / ".khomas/incoming").iterdir())
    assert await everybody.status("PUT", "file", b"\x01", Digest="adler32=20002") == 201


async def test_part_of_a_file_is_not_taken_for_all_of_it(storage: Storage, everybody: Client) -> None:
    assert await everybody.status("PUT", "file", b"content") == 201
    assert await everybody.status("PUT", "file", b"xx", Content_Range="bytes 0-1/7") == 400
    assert (await everybody.ask("GET", "file"))[1] == b"content"


async def test_checksums_are_told_in_the_words_of_both_standards(storage: Storage, everybody: Client) -> None:
    content = b"\x01"
    md5, sha256 = (base64.b64encode(hashlib.new(name, content).digest()).decode() for name in ("md5", "sha256"))
    assert await everybody.status("PUT", "file", content) == 201
    adler32 = ("adler32=00020002", "adler=:AAIAAg==:")
    for wanted, expected in (
        ({"Want_Digest": "adler32"}, adler32),
        ({"Want_Repr_Digest": "adler=3"}, adler32),
        ({"Want_Digest": "adler32, md5;q=0.5"}, adler32),
        ({"Want_Digest": "unixsum, MD5;q=0.3"}, (f"md5={md5}", f"md5=:{md5}:")),
        ({"Want_Repr_Digest": "md5=1, sha-256=9"}, (f"sha-256={sha256}", f"sha-256=:{sha256}:")),
        ({"Want_Digest": "md5;q=0, sha-512, ;;"}, (None, None)),
        ({}, (None, None)),
    ):
        for method in ("HEAD", "GET"):
            _, _, headers = await everybody.ask(method, "file", **wanted)
            assert (headers.get("Digest"), headers.get("Repr-Digest")) == expected, (method, wanted)


async def test_range_gives_that_part(storage: Storage, everybody: Client) -> None:
    await everybody.status("PUT", "digits", b"0123456789")
    assert (await everybody.ask("GET", "digits", Range="bytes=2-4"))[:2] == (206, b"234")
    status, _, headers = await everybody.ask("GET", "digits", Range="bytes=10-")
    assert (status, headers["Content-Range"]) == (416, "bytes */10")


# ------------------------------------------------------------------------------------------------------ folders


async def test_folders_are_copied_moved_and_deleted_with_all_that_is_in_them(
    storage: Storage, planted: None, everybody: Client
) -> None:
    assert await everybody.status("COPY", "foo", Destination=everybody.address("copy")) == 201
    assert (storage.root / "copy/deep/er").read_bytes() == b"there"
    assert await everybody.status("COPY", "foo", Destination=everybody.address("copy"), Overwrite="F") == 412
    assert await everybody.status("COPY", "foo", Destination=everybody.address("bare"), Depth="0") == 201
    assert names(storage.root / "bare") == []
    assert await everybody.status("MOVE", "foo", Destination=everybody.address("copy")) == 204
    assert not (storage.root / "foo").exists()
    assert names(storage.root / "copy") == ["bar", "deep"]
    assert await everybody.status("DELETE", "copy", Depth="0") == 409
    assert await everybody.status("DELETE", "copy") == 204
    assert not (storage.root / "copy").exists()


async def test_properties_are_those_that_were_asked_for(storage: Storage, planted: None, everybody: Client) -> None:
    body = b'<p:propfind xmlns:p="DAV:" xmlns:x="urn:x"><p:prop><p:getcontentlength/><x:y/></p:prop></p:propfind>'
    status, answer, _ = await everybody.ask("PROPFIND", "foo/bar", body, Depth="0")
    found = ElementTree.fromstring(answer)  # noqa: S314  our own
    assert status == 207
    texts = {stat.findtext("{DAV:}status"): [one.tag for one in stat.iter()] for stat in found.iter("{DAV:}propstat")}
    assert "{DAV:}getcontentlength" in texts["HTTP/1.1 200 OK"]
    assert "{urn:x}y" in texts["HTTP/1.1 404 Not Found"]
    quota = b'<propfind xmlns="DAV:"><prop><quota-available-bytes/><quota-used-bytes/></prop></propfind>'
    _, answer, _ = await everybody.ask("PROPFIND", "", quota, Depth="0")
    room = ElementTree.fromstring(answer)  # noqa: S314  our own
    assert int(room.findtext(".//{DAV:}quota-available-bytes") or "0") > 0


async def test_body_that_is_no_propfind_is_refused(storage: Storage, everybody: Client) -> None:
    for body in (
        b"<propfind",
        b"<x/>",
        b'<propfind xmlns="DAV:"/>',
        b'<!DOCTYPE x [<!ENTITY e "e">]><propfind xmlns="DAV:"><allprop/></propfind>',
        b'<propfind xmlns="DAV:"><prop>' + b"<a/>" * 1000 + b"</prop></propfind>",
        b" " * 100_000,
    ):
        assert await everybody.status("PROPFIND", "", body, Depth="0") in {400, 413}, body[:50]


async def test_what_cannot_be_done_is_said(storage: Storage, planted: None, everybody: Client) -> None:
    for method, path, expected in (
        ("PUT", "none/file", 409),
        ("PUT", "folder/", 409),
        ("PUT", "foo", 409),
        ("MKCOL", "none/folder", 409),
        ("MKCOL", "foo", 405),
        ("DELETE", "none", 404),
        ("DELETE", "", 403),
        ("GET", "foo/bar/", 404),
        ("GET", "foo/bar/below", 404),
        ("LOCK", "foo", 405),
        ("PROPPATCH", "foo", 405),
        ("POST", "foo", 405),
    ):
        found = await everybody.status(method, path, b"x" if method == "PUT" else None)
        assert found == expected, (method, path)
    assert await everybody.status("MKCOL", "with-body", b"x") == 415
