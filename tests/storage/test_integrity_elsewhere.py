"""Storage elements on real servers are compared, repaired, tried and scanned like a disk."""

import hashlib
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4
from zlib import adler32

import pytest

from khomas.api.catalog.v1.file_pb2 import Replica
from khomas.api.storage.v1 import integrity_service_pb2 as pb
from khomas.api.storage.v1 import storage_service_pb2
from khomas.api.storage.v1.incident_pb2 import REPAIR_DELETE, Incident
from khomas.api.storage.v1.reconciliation_pb2 import Reconciliation
from khomas.api.storage.v1.storage_element_pb2 import AccessPoint
from khomas.storage.reconciling.testing import PATIENCE, Place, damageable
from khomas.storage.testing import until
from tests.backends.conftest import shared_folder
from tests.testbeds import s3 as s3_bed
from tests.testbeds import ssh as ssh_bed
from tests.testbeds.s3 import ObjectStore
from tests.testbeds.ssh import Ssh
from tests.testbeds.web import WebServer
from tests.testbeds.xrootd import Xrootd

NAMES = ["/hess/good", "/hess/a b%20ä lost", "/hess/short", "/hess/deep/er/flipped"]


@pytest.fixture(scope="module")
def sftp() -> Iterator[Ssh]:
    with ssh_bed.running(shared_folder("integrity-sftp")) as running:
        yield running


@pytest.fixture(scope="module")
def objects() -> Iterator[ObjectStore]:
    # It remembers folders for minutes, unless told not to, and would not see what is laid behind it.
    with s3_bed.rclone(shared_folder("integrity-s3"), "--dir-cache-time", "1ms") as running:
        yield running


def on_the_web(tmp_path: Path, server: WebServer) -> AbstractAsyncContextManager[Place]:
    folder = server.open_folder(f"integrity-{uuid4().hex}")
    options = {"authorities": str(server.authorities)}
    point = AccessPoint(
        protocol="davs", address=f"{server.address}/{folder.name}", credential="server", options=options
    )
    credential = {"kind": "bearer", "options": {"file": str(server.token)}}
    return damageable(tmp_path, folder, point, settings=settings(credential))


def on_the_grid(tmp_path: Path, server: WebServer) -> AbstractAsyncContextManager[Place]:
    folder = server.open_folder(f"integrity-{uuid4().hex}")
    address = f"root://127.0.0.1:{server.port}/{folder.name}"
    point = AccessPoint(protocol="root", address=address, credential="server", options={"clear_tokens": "true"})
    credential = {"kind": "bearer", "options": {"file": str(server.token)}}
    return damageable(tmp_path, folder, point, settings=settings(credential))


def by_ssh(tmp_path: Path, server: Ssh) -> AbstractAsyncContextManager[Place]:
    folder = server.folder / f"integrity-{uuid4().hex}"
    folder.mkdir()
    folder.chmod(0o777)
    address = f"sftp://{server.address}{quote(str(folder))}"
    point = AccessPoint(
        protocol="sftp", address=address, credential="server", options={"known_hosts": str(server.known_hosts)}
    )
    credential = {"kind": "ssh", "options": {"key": str(server.key)}}
    return damageable(tmp_path, folder, point, settings=settings(credential))


def settings(credential: dict[str, Any]) -> dict[str, Any]:
    return {"credentials": {"server": credential}, "probe_interval": 0.2, "probe_poll": 0.1}


def by_s3(tmp_path: Path, store: ObjectStore) -> AbstractAsyncContextManager[Place]:
    folder = store.data / f"integrity-{uuid4().hex}"
    folder.mkdir()
    point = AccessPoint(
        protocol="s3", address=f"{store.address}/{folder.name}", credential="server", options={"plain": "true"}
    )
    credential = {"kind": "access-key", "options": {"file": str(store.keys)}}
    return damageable(tmp_path, folder, point, settings=settings(credential))


def by_xrootd(tmp_path: Path, server: Xrootd) -> AbstractAsyncContextManager[Place]:
    return on_the_grid(tmp_path, server.servers[0])


def by_xrdhttp(tmp_path: Path, server: Xrootd) -> AbstractAsyncContextManager[Place]:
    return on_the_web(tmp_path, server.servers[0])


@pytest.fixture(
    params=[
        ("apache", on_the_web),
        ("xrootd", by_xrdhttp),
        ("xrootd", by_xrootd),
        ("sftp", by_ssh),
        ("objects", by_s3),
    ],
    ids=["apache", "xrdhttp", "root", "sftp", "s3"],
)
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    """Servers with checksums of their own and without, of the web and not."""
    name, opened = request.param
    async with opened(tmp_path, request.getfixturevalue(name)) as made:
        yield made
    shutil.rmtree(made.mirror, ignore_errors=True)


def let_change(place: Place) -> None:
    """Let the server's user change what was laid there by another one."""
    for path in place.mirror.rglob("*"):
        path.chmod(0o777 if path.is_dir() else 0o666)


async def test_what_differs_on_a_server_is_found_and_repaired(place: Place) -> None:
    await place.stored(*NAMES)
    place.lay("hess/short", b"sh")
    place.lay("hess/deep/er/flipped", b"/hess/deep/er/Flipped")
    place.lay("hess/dark", b"nobody knows me")
    (place.mirror / NAMES[1][1:]).unlink()
    let_change(place)

    run = await place.compared(Reconciliation.MODE_FULL)

    assert run.state == Reconciliation.STATE_SUCCEEDED, run.message
    assert await place.kinds() == {
        "hess/a b%20ä lost": "LOST",
        "hess/short": "SIZE",
        "hess/deep/er/flipped": "CHECKSUM",
        "hess/dark": "DARK",
    }
    assert await place.apply("kind = DARK", REPAIR_DELETE) == 1
    await place.settled()
    assert {one.state for one in await place.incidents()} == {Incident.STATE_RESOLVED}, await place.incidents()
    for name in NAMES:
        replica = await place.replica(name)
        assert replica is not None
        assert replica.state == Replica.STATE_AVAILABLE
        assert (place.mirror / replica.path).read_bytes() == name.encode()
    assert len(place.lies()) == len(NAMES)


async def test_tree_on_a_server_is_scanned_in_path_order_with_checksums(place: Place) -> None:
    for path in ("z", "a/b", "a.fits", "a b%20ä/c", "a/a/a"):
        place.lay(path, path.encode())
    place.lay(".khomas/hidden", b"not seen")
    let_change(place)
    stub = place.storage.stub

    async def scanned(**more: Any) -> list[storage_service_pb2.ScannedFile]:
        request = storage_service_pb2.ScanTreeRequest(storage_element="mirror", **more)
        return [file async for answer in stub.ScanTree(request) for file in answer.files]

    found = await scanned(checksums=True)

    paths = ["a b%20ä/c", "a.fits", "a/a/a", "a/b", "z"]
    assert [one.path for one in found] == paths
    assert [one.size_bytes for one in found] == [len(path.encode()) for path in paths]
    assert [one.checksums.adler32 for one in found] == [f"{adler32(path.encode()):08x}" for path in paths]
    # A server that tells checksums is believed, and nothing is fetched.
    all_read = [hashlib.sha256(path.encode()).hexdigest() for path in paths]
    assert [one.checksums.sha256 for one in found] in (all_read, [""] * len(paths))
    errors = [one.error for one in await scanned(cards=["OBJECT"])]
    assert [bool(error) for error in errors] == [False, True, False, False, False], errors
    assert [one.path for one in await scanned(after_path="a.fits")] == paths[2:]
    assert [one.path for one in await scanned(path="a", limit=1)] == ["a/a/a"]
    assert [one.path for one in await scanned(include=["*/c"])] == ["a b%20ä/c"]


async def test_server_and_the_ways_to_it_are_tried(place: Place) -> None:
    async def probed() -> bool:
        answer = await place.integrity.ListProbes(pb.ListProbesRequest())
        return len(answer.probes) == 4 and all(one.recent_probes for one in answer.probes)

    await until(probed, PATIENCE)

    probes = (await place.integrity.ListProbes(pb.ListProbesRequest())).probes
    assert [(one.source, one.destination, one.failed_step, one.message) for one in probes] == [
        (one, other, "", "") for one in ("local", "mirror") for other in ("local", "mirror")
    ]
    assert all(one.bytes_per_second > 0 for one in probes if one.source != one.destination)
    assert place.lies() == []
