"""`davs` against our own door: as another installation, or a site that has only that, would use it."""

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from khomas.kit.credentials.bearer import BearerOptions, BearerToken
from khomas.storage.conformance import ThirdPartyConformance
from khomas.storage.protocols.dav.protocol import plugin
from khomas.storage.protocols.interface import Access, StorageProtocol
from tests.storage.dav import DavSuite, opened
from tests.testbeds.doors import Doors
from tests.testbeds.web import WebServer


def element(server: WebServer, name: str, folder: str = "") -> StorageProtocol:
    """Open a folder of another StorageElement of a door."""
    credential = BearerToken("test", BearerOptions(file=server.token))
    address = f"dav://127.0.0.1:{server.port}/dav/{name}/{folder}"
    return plugin.open(Access(address, credential=credential, options={"idle_seconds": "40"}))


class TestDoor(DavSuite):
    """The door keeps the contract."""

    @pytest.fixture
    def server(self, doors: Doors) -> WebServer:
        return doors.servers[0]

    @pytest.fixture
    async def full(self, server: WebServer) -> AsyncIterator[StorageProtocol]:
        # The root itself has a folder of the service, which nobody else gets into.
        folder = uuid4().hex
        (server.data / "full" / folder).mkdir()
        protocol = element(server, "full", folder)
        yield protocol
        await protocol.close()

    @pytest.fixture
    async def forbidden(self, server: WebServer) -> AsyncIterator[StorageProtocol]:
        protocol = element(server, "forbidden")
        yield protocol
        await protocol.close()


class TestDoorCopies(ThirdPartyConformance):
    """Both doors pull and push, each with a token of the other."""

    @pytest.fixture
    def folder(self, doors: Doors) -> str:
        name = uuid4().hex
        for server in doors.servers:
            server.open_folder(name)
        return name

    @pytest.fixture
    async def protocol(self, doors: Doors, folder: str) -> AsyncIterator[StorageProtocol]:
        protocol = opened(doors.servers[0], folder)
        yield protocol
        await protocol.close()

    @pytest.fixture
    async def other(self, doors: Doors, folder: str) -> AsyncIterator[StorageProtocol]:
        protocol = opened(doors.servers[1], folder)
        yield protocol
        await protocol.close()


class TestDoorBehindNginx(ThirdPartyConformance):
    """The same over TLS, where others end it: the first door is reached by another name and another scheme."""

    @pytest.fixture
    def folder(self, doors: Doors) -> str:
        name = uuid4().hex
        for server in doors.servers:
            server.open_folder(name)
        return name

    @pytest.fixture
    async def protocol(self, doors: Doors, folder: str) -> AsyncIterator[StorageProtocol]:
        server = doors.servers[0]
        credential = BearerToken("test", BearerOptions(file=server.token))
        options = {"authorities": str(server.authorities), "idle_seconds": "40"}
        protocol = plugin.open(Access(f"{doors.secure}/{folder}", credential=credential, options=options))
        yield protocol
        await protocol.close()

    @pytest.fixture
    async def other(self, doors: Doors, folder: str) -> AsyncIterator[StorageProtocol]:
        protocol = opened(doors.servers[1], folder)
        yield protocol
        await protocol.close()
