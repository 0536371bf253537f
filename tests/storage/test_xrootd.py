"""`root` against real XRootD servers."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from khomas.kit.credentials.bearer import BearerOptions, BearerToken
from khomas.storage.conformance import (
    CredentialConformance,
    ProtocolConformance,
    ServerConformance,
    ThirdPartyConformance,
)
from khomas.storage.protocols.interface import Access, StorageProtocol
from khomas.storage.protocols.xrootd.plugin import plugin
from tests.testbeds.tokens import Issuer
from tests.testbeds.web import WebServer
from tests.testbeds.xrootd import Xrootd


def opened(server: WebServer, folder: str, token: Path | None = None, **options: str) -> StorageProtocol:
    """Open a folder of a server."""
    credential = BearerToken("test", BearerOptions(file=token or server.token))
    given = {"clear_tokens": "true", "idle_seconds": "40", "seconds": "40"} | options
    return plugin.open(Access(f"root://127.0.0.1:{server.port}/{folder}", credential=credential, options=given))


class TestRoot(ProtocolConformance, ServerConformance, CredentialConformance):
    """One server, and the tokens of its issuer."""

    # It would make a file "q".
    refused = frozenset({"q?a=1&b#c"})

    @pytest.fixture
    def server(self, xrootd: Xrootd) -> WebServer:
        return xrootd.servers[0]

    @pytest.fixture
    def folder(self, server: WebServer) -> Iterator[str]:
        name = f"a b%20ä-{uuid4().hex}"
        yield name
        shutil.rmtree(server.data / name)

    @pytest.fixture
    def disk(self, server: WebServer, folder: str) -> Path:
        return server.open_folder(folder)

    @pytest.fixture
    def protocol(self, server: WebServer, folder: str, disk: Path) -> StorageProtocol:
        return opened(server, folder.replace("%", "%25"))

    @pytest.fixture
    def full(self, server: WebServer) -> Iterator[StorageProtocol]:
        yield opened(server, "full")
        for left in (server.data / "full").iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()

    @pytest.fixture
    def forbidden(self, server: WebServer) -> StorageProtocol:
        return opened(server, "forbidden")

    @pytest.fixture
    def expired(self, server: WebServer, tmp_path: Path) -> StorageProtocol:
        return opened(server, "", Issuer.new(tmp_path).token("expired", "storage.modify:/", seconds=-60))


class TestRootCopies(ThirdPartyConformance):
    """Either server fetches from the other one."""

    @pytest.fixture
    def folder(self, xrootd: Xrootd) -> str:
        name = uuid4().hex
        for server in xrootd.servers:
            server.open_folder(name)
        return name

    @pytest.fixture
    def protocol(self, xrootd: Xrootd, folder: str) -> StorageProtocol:
        return opened(xrootd.servers[0], folder)

    @pytest.fixture
    def other(self, xrootd: Xrootd, folder: str) -> StorageProtocol:
        return opened(xrootd.servers[1], folder)
