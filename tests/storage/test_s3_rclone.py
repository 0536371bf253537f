"""`s3` against `rclone serve s3`, which checks keys and keeps objects as files of a folder."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC
from pathlib import Path

import pytest

from khomas.storage.conformance import (
    MIB,
    CredentialConformance,
    ProtocolConformance,
    ServerConformance,
    read,
    write,
)
from khomas.storage.conformance.content import listed, problems
from khomas.storage.conformance.listing import Listing
from khomas.storage.conformance.reading import Reading
from khomas.storage.protocols.interface import Problem, StorageProtocol
from khomas.storage.protocols.s3.protocol import S3Protocol
from tests.backends.conftest import shared_folder
from tests.storage.s3 import opened
from tests.testbeds import disks, s3
from tests.testbeds.s3 import ObjectStore


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    """An object store; whoever stops it starts it again."""
    with s3.rclone(shared_folder("rclone")) as running:
        yield running


@pytest.fixture(scope="module")
def hashless() -> Iterator[ObjectStore]:
    """One that tells no MD5, for which it would read whatever it is asked about."""
    with s3.rclone(shared_folder("rclone"), "--etag-hash", "") as running:
        yield running


class Planting(Listing, Reading):
    """Files are put straight into the folder of the server, which knows of them after a start."""

    store: ObjectStore

    @pytest.fixture
    def disk(self, protocol: S3Protocol) -> Path:
        folder = self.store.data / protocol.prefix
        folder.mkdir()
        return folder

    async def planted(self, protocol: StorageProtocol, folder: str, number: int) -> list[str]:
        paths = await super().planted(protocol, folder, number)
        await asyncio.to_thread(self.store.restart)
        return paths

    async def sparse(self, protocol: StorageProtocol, path: str) -> None:
        await super().sparse(protocol, path)
        await asyncio.to_thread(self.store.restart)


class TestHashless(Planting):
    """Long listings and a large file, at a server that does not read them all for their MD5."""

    @pytest.fixture
    async def protocol(self, hashless: ObjectStore) -> AsyncIterator[S3Protocol]:
        self.store = hashless
        protocol = opened(hashless)
        yield protocol
        await protocol.close()


class TestRclone(Planting, ProtocolConformance, ServerConformance, CredentialConformance):
    """rclone keeps the contract as far as it can: whatever goes wrong with its folder is an internal error to it."""

    full_problem = Problem.PASSING
    forbidden_problem = Problem.PASSING
    # It reads every file for the listing.
    many = 2000
    sparse_bytes = 64 * MIB

    @pytest.fixture
    async def protocol(self, server: ObjectStore) -> AsyncIterator[S3Protocol]:
        server.start()
        self.store = server
        protocol = opened(server)
        yield protocol
        await protocol.close()

    @pytest.fixture
    async def full(self, tmp_path: Path) -> AsyncIterator[StorageProtocol]:
        with disks.memory(tmp_path / "data", 4 * MIB), s3.rclone(tmp_path) as server:
            protocol = opened(server)
            yield protocol
            await protocol.close()

    @pytest.fixture
    async def forbidden(self, tmp_path: Path) -> AsyncIterator[StorageProtocol]:
        with s3.rclone(tmp_path, "--read-only") as server:
            (server.data / "below").mkdir()
            (server.data / "below/file").write_bytes(b"abc")
            protocol = opened(server, "below")
            yield protocol
            await protocol.close()

    @pytest.fixture
    async def expired(self, server: ObjectStore, tmp_path: Path) -> AsyncIterator[StorageProtocol]:
        end = "aws_expiration = 2020-01-01T00:00:00Z"
        protocol = opened(server, keys=s3.write_keys(tmp_path / "old", s3.ACCESS_KEY, s3.SECRET_KEY, end))
        yield protocol
        await protocol.close()


class TestWrongKeys(CredentialConformance):
    """A key that the server does not believe is told as such, also where the answer has no words."""

    @pytest.fixture
    async def expired(self, server: ObjectStore, tmp_path: Path) -> AsyncIterator[StorageProtocol]:
        server.start()
        protocol = opened(server, keys=s3.write_keys(tmp_path / "wrong", s3.ACCESS_KEY, "x" * 40))
        yield protocol
        await protocol.close()


async def test_environment_of_other_tools_is_not_meant_for_us(
    server: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.start()
    for name in ("PROFILE", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "REGION", "ENDPOINT_URL"):
        monkeypatch.setenv(f"AWS_{name}", "elsewhere")
    protocol = opened(server)
    await write(protocol, "file", b"abc")
    assert await read(protocol, "file") == b"abc"
    (found,) = await listed(protocol, "")
    assert found.modify_time is not None
    assert found.modify_time.tzinfo is UTC
    await protocol.close()


async def test_keys_that_change_are_used_at_once(server: ObjectStore, tmp_path: Path) -> None:
    server.start()
    keys = s3.write_keys(tmp_path / "keys", s3.ACCESS_KEY, "x" * 40)
    protocol = opened(server, keys=keys)
    assert problems(await protocol.stat(["file"])) == [Problem.CREDENTIAL]
    keys.unlink()
    s3.write_keys(keys, s3.ACCESS_KEY, s3.SECRET_KEY)
    await write(protocol, "file", b"abc")
    assert await read(protocol, "file") == b"abc"
    await protocol.close()
