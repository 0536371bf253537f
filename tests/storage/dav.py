"""What the tests of `davs` against each server have in common."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from khomas.kit.credentials.bearer import BearerOptions, BearerToken
from khomas.storage.conformance import MIB, CredentialConformance, ProtocolConformance, ServerConformance, write
from khomas.storage.conformance.content import content
from khomas.storage.protocols.dav.protocol import plugin
from khomas.storage.protocols.interface import Access, Entry, StorageProtocol
from tests.testbeds.tokens import Issuer
from tests.testbeds.web import WebServer


def opened(server: WebServer, folder: str, token: Path | None = None, **options: str) -> StorageProtocol:
    """Open a folder of a server."""
    credential = BearerToken("test", BearerOptions(file=token or server.token))
    return plugin.open(
        Access(
            f"{server.address}/{folder}",
            credential=credential,
            options={"authorities": str(server.authorities), "idle_seconds": "40"} | options,
        )
    )


class DavSuite(ProtocolConformance, ServerConformance, CredentialConformance):
    """The conformance of `davs` over one server; subclasses name the fixture `server`."""

    # Chosen so that the folder itself has to be quoted.
    @pytest.fixture
    def folder(self, server: WebServer) -> Iterator[str]:
        name = f"a b-ä-{uuid4().hex}"
        yield name
        shutil.rmtree(server.data / name)

    @pytest.fixture
    def disk(self, server: WebServer, folder: str) -> Path:
        return server.open_folder(folder)

    @pytest.fixture
    async def protocol(self, server: WebServer, folder: str, disk: Path) -> AsyncIterator[StorageProtocol]:
        protocol = opened(server, folder)
        yield protocol
        await protocol.close()

    @pytest.fixture
    async def full(self, server: WebServer) -> AsyncIterator[StorageProtocol]:
        protocol = opened(server, "full")
        yield protocol
        await protocol.close()
        for left in (server.data / "full").iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()

    @pytest.fixture
    async def forbidden(self, server: WebServer) -> AsyncIterator[StorageProtocol]:
        protocol = opened(server, "forbidden")
        yield protocol
        await protocol.close()

    @pytest.fixture
    async def expired(self, server: WebServer, tmp_path: Path) -> AsyncIterator[StorageProtocol]:
        protocol = opened(server, "", Issuer.new(tmp_path).token("expired", "storage.modify:/", seconds=-60))
        yield protocol
        await protocol.close()

    async def test_upload_ends_wherever_its_last_tls_record_lies(self, protocol: StorageProtocol) -> None:
        """With the head of the request, some of these end just behind where a buffer of 1 MiB is full."""
        bodies = {f"file{left}": content(MIB + left) for left in range(15_600, 16_600, 100)}
        await asyncio.gather(*(write(protocol, name, body) for name, body in bodies.items()))
        found = await protocol.stat(list(bodies))
        assert [one.size_bytes for one in found if isinstance(one, Entry)] == [len(body) for body in bodies.values()]
