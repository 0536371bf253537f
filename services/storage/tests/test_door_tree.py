"""The tree of WebDAV lets in who has a token with storage scopes, for exactly the paths that these name."""

import asyncio
import base64
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from khomas.api.storage.v1 import storage_element_pb2
from khomas.api.storage.v1 import storage_service_pb2 as pb
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


# --------------------------------------------------------------------------------------------------- who may what


SCOPES = [
    ("storage.read:/foo", "foo/bar", 200),
    ("storage.read:/foo", "foo/deep/er", 200),
    ("storage.read:/foo", "foobar", 403),
    ("storage.read:/foo/", "foo/bar", 200),
    ("storage.read:/foo/", "foobar", 403),
    ("storage.read:/foo/bar", "foo/bar", 200),
    ("storage.read:/foo/ba", "foo/bar", 403),
    ("storage.read:/Foo", "foo/bar", 403),
    ("storage.read:/%66oo", "foo/bar", 200),
    ("storage.modify:/", "foo/bar", 403),
    ("storage.stage:/", "foo/bar", 403),
    ("storage.create:/", "foo/bar", 403),
    ("catalog.read:/", "foo/bar", 403),
    ("storage.read:/foo", "%66oo/bar", 200),
]


async def test_reading_wants_a_scope_that_covers_whole_segments(storage: Storage, planted: None) -> None:
    for scope, path, expected in SCOPES:
        assert await Client(storage, scope).status("GET", path) == expected, (scope, path)


async def test_token_with_an_odd_scope_is_no_token(storage: Storage, planted: None) -> None:
    for odd in ("storage.read:/foo/..", "storage.read:/foo/../", "storage.read:foo", "storage.read", "storage.read:"):
        assert await Client(storage, odd, "storage.read:/").status("GET", "foo/bar") == 401, odd


# What each right alone is answered.
RIGHTS = [
    ("PUT", "new", 201, 201, 403),
    ("PUT", "foo/bar", 403, 204, 403),
    ("MKCOL", "folder", 201, 201, 403),
    ("DELETE", "foo/bar", 403, 204, 403),
    ("HEAD", "foo/bar", 200, 200, 200),
    ("GET", "foo/bar", 403, 403, 200),
    ("GET", "foo", 403, 403, 200),
]


async def test_each_right_is_a_right_of_its_own(storage: Storage, planted: None) -> None:
    for method, path, create, modify, read in RIGHTS:
        data = b"new" if method == "PUT" else None
        for capability, expected in (("read", read), ("create", create)):
            found = await Client(storage, f"storage.{capability}:/").status(method, path, data)
            assert found == expected, (method, path, capability)
        if create == 201:
            await Client(storage, "storage.modify:/").status("DELETE", path)
        assert await Client(storage, "storage.modify:/").status(method, path, data) == modify, (method, path)
        (storage.root / "foo/bar").write_bytes(b"there")


async def test_copies_and_moves_want_rights_at_both_ends(storage: Storage, planted: None) -> None:
    (storage.root / "bar").mkdir()
    for rights, copy, move in (
        (["storage.read:/foo", "storage.create:/bar"], 201, 403),
        (["storage.modify:/foo", "storage.read:/"], 403, 403),
        (["storage.modify:/bar", "storage.read:/bar"], 403, 403),
        (["storage.modify:/foo", "storage.create:/bar"], 403, 201),
    ):
        client = Client(storage, *rights)
        for method, status in (("COPY", copy), ("MOVE", move)):
            (storage.root / "bar/new").unlink(missing_ok=True)
            found = await client.status(method, "foo/bar", Destination=client.address("bar/new"))
            assert found == status, (method, rights)


async def test_overwriting_wants_modify_at_the_destination(storage: Storage, planted: None) -> None:
    client = Client(storage, "storage.read:/", "storage.create:/")
    assert await client.status("COPY", "foo/bar", Destination=client.address("secret")) == 403
    assert (storage.root / "secret").read_bytes() == b"there"


async def test_listing_wants_read(storage: Storage, planted: None, everybody: Client) -> None:
    for scope, depth, expected in (
        ("storage.create:/foo", "0", 207),
        ("storage.create:/foo", "1", 403),
        ("storage.read:/foo", "1", 207),
        ("storage.read:/foo/", "1", 403),
        ("storage.read:/secret", "0", 403),
    ):
        assert await Client(storage, scope).status("PROPFIND", "foo", Depth=depth) == expected, (scope, depth)
    assert await Client(storage, "storage.read:/foo/").status("PROPFIND", "foo/", Depth="1") == 207
    assert await everybody.status("PROPFIND", "foo", Depth="infinity") == 403


async def test_without_a_good_token_nobody_gets_in(storage: Storage, planted: None) -> None:
    url = Client(storage).address("foo/bar")
    expired = storage.served.token(["storage.read:/"], expires_in=timedelta(seconds=-1))
    foreign = storage.served.token(["storage.read:/"], audience="https://elsewhere.example")
    grant = storage.parts.signer
    for header in ("", "Bearer", "Bearer x", f"Bearer {expired}", f"Bearer {foreign}", "Basic !", f"Negotiate {grant}"):
        async with storage.http.get(url, headers={"Authorization": header} if header else {}) as answer:
            assert answer.status == 401, header
            assert [one.split()[0] for one in answer.headers.getall("WWW-Authenticate")] == ["Bearer", "Basic"]


async def test_token_of_the_tree_is_no_grant_and_no_grant_is_a_token(storage: Storage, everybody: Client) -> None:
    await storage.store("/hess/file", b"there")
    grant = (await storage.download("/hess/file")).grants[0]
    async with storage.http.get(grant.url, headers={"Authorization": f"Bearer {everybody.token}"}) as answer:
        assert answer.status == 401
    async with storage.http.get(everybody.address("hess/file"), headers=dict(grant.headers)) as answer:
        assert answer.status == 401


async def test_browsers_send_the_token_as_a_password(storage: Storage, planted: None, everybody: Client) -> None:
    password = base64.b64encode(f"anybody:{everybody.token}".encode()).decode()
    async with storage.http.get(everybody.address("foo"), headers={"Authorization": f"Basic {password}"}) as answer:
        page = await answer.text()
        assert (answer.status, answer.content_type) == (200, "text/html")
    assert '<a href="/dav/local/foo/bar">bar</a>' in page


async def test_page_runs_nothing_that_a_name_says(storage: Storage, everybody: Client) -> None:
    (storage.root / "<script>alert(1)<").mkdir()
    (storage.root / "<script>alert(1)<" / '"><img src=x onerror=alert(2)>').write_bytes(b"<script>")
    (storage.root / "<script>alert(1)<" / "javascript:alert(3)").write_bytes(b"<script>")
    _, page, headers = await everybody.ask("GET", "%3Cscript%3Ealert(1)%3C")
    assert b"<script" not in page
    assert b"<img" not in page
    assert b'href="javascript' not in page
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    _, _, headers = await everybody.ask("GET", "%3Cscript%3Ealert(1)%3C/javascript:alert(3)")
    assert headers["Content-Type"] == "application/octet-stream"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"].startswith("sandbox")


# ------------------------------------------------------------------------------------------------- odd addresses

ODD = [
    "/dav/local/../../issuer.json",
    "/dav/local/foo/../../../issuer.json",
    "/dav/local/%2e%2e/issuer.json",
    "/dav/local/%2E%2E/%2e%2e/issuer.json",
    "/dav/local/..%2f..%2fissuer.json",
    "/dav/local/foo%2fbar",
    "/dav/local/foo/./bar",
    "/dav/local//foo/bar",
    "/dav/local/foo//bar",
    "/dav//local/foo/bar",
    "//dav/local/foo/bar",
    "/dav/local/foo/bar%00",
    "/dav/local/foo/bar%0a",
    "/dav/local/foo/bar%7f",
    "/dav/local/foo/%zz",
    "/dav/local/foo/%e2%80",
    "/dav/local/foo/u%cc%88",
    "/dav/local/foo/bar?x=1",
    "/dav/local/foo/bar#part",
    "/dav/local/.khomas/uploads",
    "/dav/local/%2ekhomas/uploads",
    "/dav/local/.khomas",
    "/dav/../files/local/foo/bar",
    "/dav/%2e%2e/files/local/foo/bar",
    "/davs/local/foo/bar",
    "/%64av/../files/local/foo/bar",
    "/dav/nowhere/foo/bar",
    "/dav/local/" + "a" * 3000,
]


# No method of an odd address is answered otherwise.
REFUSED = {400, 401, 403, 404, 502}


async def raw(storage: Storage, method: str, target: str, token: str, *headers: str) -> int:
    """Ask with an address as it stands here: clients put them right."""
    door = storage.served.http["storage"]
    reader, writer = await asyncio.open_connection("127.0.0.1", int(door.rpartition(":")[2]))
    lines = [f"{method} {target} HTTP/1.1", "Host: x", f"Authorization: Bearer {token}", "Connection: close"]
    writer.write("\r\n".join([*lines, "Content-Length: 0", *headers, "", ""]).encode())
    status = int((await reader.readline()).split()[1])
    writer.close()
    return status


async def test_odd_address_is_refused_for_every_method(storage: Storage, planted: None, everybody: Client) -> None:
    before = _all_names(storage)
    for target in ODD:
        for method in ("GET", "PUT", "DELETE", "MKCOL", "PROPFIND", "MOVE", "COPY"):
            status = await raw(storage, method, target, everybody.token, "Depth: 0", "Destination: /dav/local/new")
            assert status in REFUSED, (method, target)
        if target.startswith("/dav/") and not {"#", "?"} & set(target):
            for method in ("MOVE", "COPY"):
                status = await raw(storage, method, "/dav/local/foo/bar", everybody.token, f"Destination: {target}")
                assert status in REFUSED, (method, target)
    assert before == _all_names(storage)


def _all_names(storage: Storage) -> list[str]:
    return sorted(str(path) for path in storage.served.state.rglob("*") if "sqlite" not in path.name)


DESTINATIONS: list[tuple[str, dict[str, int]]] = [
    ("http://elsewhere.example/dav/local/new", {"MOVE": 502, "COPY": 403}),
    ("https://x@127.0.0.1/dav/local/new", {"MOVE": 502}),
    ("file:///etc/passwd", {"MOVE": 400, "COPY": 400}),
    ("/dav/local/foo", {"MOVE": 409, "COPY": 409}),
    ("/dav/local/foo/bar", {"MOVE": 403, "COPY": 403}),
    ("/dav/local/foo/bar/below", {"MOVE": 403, "COPY": 403}),
    ("/dav/local/", {"MOVE": 403, "COPY": 403}),
    ("/dav/", {"MOVE": 502, "COPY": 403}),
    ("/dav/local/none/new", {"MOVE": 409, "COPY": 409}),
    ("/dav/nowhere/new", {"MOVE": 502, "COPY": 404}),
    ("/files/local/new", {"MOVE": 400, "COPY": 400}),
    ("", {"MOVE": 400, "COPY": 400}),
]


async def test_destination_that_is_no_free_place_of_the_tree_is_refused(
    storage: Storage, planted: None, everybody: Client
) -> None:
    for destination, expected in DESTINATIONS:
        for method, status in expected.items():
            header = f"Destination: {destination}"
            assert await raw(storage, method, "/dav/local/foo/bar", everybody.token, header) == status, (method, header)
        assert (storage.root / "foo/bar").read_bytes() == b"there"


async def test_links_lead_nowhere(storage: Storage, planted: None, everybody: Client) -> None:
    (storage.root / "out").symlink_to("/etc")
    (storage.root / "in").symlink_to(storage.root / "foo")
    (storage.root / "passwd").symlink_to("/etc/passwd")
    for path in ("out/passwd", "passwd", "out"):
        assert await everybody.status("GET", path) == 403
        assert await everybody.status("COPY", path, Destination=everybody.address("new")) in {400, 403}
    # One that stays inside may be read over. What is written there would have two names.
    assert await everybody.status("GET", "in/bar") == 200
    for method, path, headers in (
        ("PUT", "in/new", {}),
        ("PUT", "out/new", {}),
        ("DELETE", "in/bar", {}),
        ("MKCOL", "in/folder", {}),
        ("MOVE", "in/bar", {"Destination": everybody.address("new")}),
        ("MOVE", "foo/bar", {"Destination": everybody.address("in/new")}),
        ("COPY", "foo/bar", {"Destination": everybody.address("out/new")}),
        ("COPY", "", {"Destination": everybody.address("new")}),
    ):
        assert await everybody.status(method, path, b"x" if method == "PUT" else None, **headers) == 403, (method, path)
    assert names(storage.root / "foo") == ["bar", "deep"]


async def test_private_folder_is_reached_by_no_other_way(storage: Storage, everybody: Client) -> None:
    (storage.root / "inner/.khomas/uploads").mkdir(parents=True)
    (storage.root / "inner/.khomas/uploads/secret").write_bytes(b"secret")
    (storage.root / "link").symlink_to(storage.root / "inner/.khomas")
    # It is the folder of another installation, until the root is one of ours.
    assert await everybody.status("GET", "inner/.khomas/uploads/secret") == 200
    point = storage_element_pb2.AccessPoint(protocol="posix", address=str(storage.root / "inner"))
    element = storage_element_pb2.StorageElement(
        name="storageElements/inner", media=storage_element_pb2.StorageElement.MEDIA_DISK, access_points=[point]
    )
    await storage.stub.CreateStorageElement(
        pb.CreateStorageElementRequest(storage_element=element, request_id=str(uuid4()))
    )
    away = {"Destination": everybody.address("away")}
    for path in ("inner/.khomas/uploads/secret", "inner/.khomas", "link/uploads/secret", "link"):
        for method, headers in (("GET", {}), ("PROPFIND", {"Depth": "1"}), ("COPY", away), ("MOVE", away)):
            assert await everybody.status(method, path, **headers) == 403, (method, path)
        assert await everybody.status("PUT", f"{path}/new", b"x") == 403
    for method, headers in (("DELETE", {}), ("MOVE", away)):
        assert await everybody.status(method, "inner", **headers) == 403, method
    assert (storage.root / "inner/.khomas/uploads/secret").read_bytes() == b"secret"


# ------------------------------------------------------------------------------------------------ what is ours


async def test_catalogued_file_is_read_and_never_changed(storage: Storage, everybody: Client) -> None:
    await storage.store("/hess/raw/ours", b"ours")
    (storage.root / "theirs").write_bytes(b"theirs")
    assert (await everybody.ask("GET", "hess/raw/ours"))[1] == b"ours"
    away = {"Destination": everybody.address("away")}
    onto = {"Destination": everybody.address("hess/raw/ours")}
    for method, path, headers in (
        ("PUT", "hess/raw/ours", {}),
        ("DELETE", "hess/raw/ours", {}),
        ("DELETE", "hess/raw", {}),
        ("DELETE", "hess", {}),
        ("MOVE", "hess/raw/ours", away),
        ("MOVE", "hess", away),
        ("MOVE", "theirs", onto),
        ("COPY", "theirs", onto),
        ("COPY", "theirs", {"Destination": everybody.address("hess")}),
    ):
        status, body, _ = await everybody.ask(method, path, b"x" if method == "PUT" else None, **headers)
        assert (status, b"CATALOGUED" in body) == (403, True), (method, path, body)
    assert (storage.root / "hess/raw/ours").read_bytes() == b"ours"
    # Beside it there is room for others, and a copy of it is theirs.
    assert await everybody.status("PUT", "hess/raw/theirs", b"theirs") == 201
    assert await everybody.status("COPY", "hess/raw/ours", **away) == 201
    assert await everybody.status("DELETE", "away") == 204
    assert await everybody.status("DELETE", "hess/raw/theirs") == 204


async def test_file_that_is_about_to_be_catalogued_is_ours_already(storage: Storage, everybody: Client) -> None:
    def fail(method: str) -> None:
        raise ConnectionError

    storage.catalog.before = fail
    upload = await storage.open()
    await storage.put(upload, b"ours")
    commit = asyncio.create_task(storage.commit(storage.wanted(upload, "/hess/coming", b"ours")))

    async def placed() -> bool:
        return (storage.root / "hess/coming").exists()

    await until(placed, 60)
    assert await everybody.status("DELETE", "hess/coming") == 403
    storage.catalog.before = lambda method: None
    commit.cancel()
    await asyncio.gather(commit, return_exceptions=True)


async def test_file_that_was_forgotten_is_nobodys(storage: Storage, everybody: Client) -> None:
    assert await everybody.status("PUT", "hess", b"x") == 201
    committed = await storage.store("/hess/file", b"ours")
    # A file stands where the folder was wanted, so it went beside it.
    assert committed.path != "hess/file"
    assert await everybody.status("DELETE", "hess") == 204


async def test_read_only_element_takes_nothing(storage: Storage, planted: None, everybody: Client) -> None:
    element = await storage.stub.GetStorageElement(pb.GetStorageElementRequest(name="storageElements/local"))
    element.read_only = True
    update_mask = FieldMask(paths=["read_only"])
    await storage.stub.UpdateStorageElement(
        pb.UpdateStorageElementRequest(storage_element=element, update_mask=update_mask, request_id=str(uuid4()))
    )
    assert await everybody.status("PUT", "new", b"x") == 403
    assert await everybody.status("DELETE", "foo/bar") == 403
    assert await everybody.status("GET", "foo/bar") == 200
