"""`root` against real XRootD servers."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from khomas.kit.credentials.bearer import BearerOptions, BearerToken
from khomas.storage.conformance import (
    MIB,
    CredentialConformance,
    ProtocolConformance,
    ServerConformance,
    ThirdPartyConformance,
    read,
    write,
)
from khomas.storage.conformance.content import content, wanted
from khomas.storage.landing import Landings
from khomas.storage.protocols.interface import Access, Problem, ProtocolFault, StorageProtocol
from khomas.storage.protocols.xrootd.plugin import plugin
from khomas.storage.transfers.copying import Copy
from tests.backends.conftest import shared_folder
from tests.testbeds import xrootd as xrootd_bed
from tests.testbeds.tape import Tape
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


@pytest.mark.parametrize(
    ("by", "kind"), [("token", "bearer"), ("proxy", "x509"), ("proxy", "none"), ("proxy", "bearer")]
)
def test_one_logs_in_over_tls_with_the_right_credential(by: str, kind: str) -> None:
    with xrootd_bed.guarded(shared_folder("guarded"), by) as server:
        # Whom it believes is the same for a whole process, so this takes one of its own.
        done = subprocess.run(
            [
                sys.executable, "-m", "tests.storage.root_login", f"roots://localhost:{server.port}/",
                str(server.authorities), kind, str(server.token if kind == "x509" else server.folder / "all.token"),
            ],
            check=False, capture_output=True, text=True, timeout=110,
        )  # fmt: skip
    right = {"token": "bearer", "proxy": "x509"}[by] == kind
    assert done.stdout.split() == (["abc"] if right else ["credential"]), done.stderr


async def test_token_does_not_go_over_a_connection_that_others_read(xrootd: Xrootd) -> None:
    protocol = opened(xrootd.servers[0], "", clear_tokens="false")
    (found,) = await protocol.stat(["file"])
    assert isinstance(found, ProtocolFault)
    assert (found.problem, "roots://" in found.message) == (Problem.CONFIGURATION, True)


@pytest.mark.parametrize(
    ("address", "options"),
    [
        ("https://host/path", {}),
        ("root:///path", {}),
        ("root://user@host/path", {}),
        ("root://host/a/../b", {}),
        ("root://host:port/", {}),
        ("root://host/?a=b", {}),
        ("root://host/", {"unknown": "1"}),
        ("root://host/", {"stage_files": "0"}),
    ],
)
def test_wrong_address_or_option_is_told_at_once(address: str, options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"address|option|[Pp]ort"):
        plugin.open(Access(address, options=options))


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

    async def test_server_that_does_not_copy_for_others_is_served_by_us(
        self, protocol: StorageProtocol, tape: Tape
    ) -> None:
        other = plugin.open(Access(tape.address))
        data = content(3 * MIB)
        await write(protocol, "from", data)
        copy = Copy(wanted(data))
        async with await Landings().begin(other) as landing:
            await copy.run(protocol, "from", landing)
            await landing.publish("copies/to")
        assert await read(other, "copies/to") == data
        assert copy.streamed_bytes == len(data)
        await other.delete(["copies/to"])
