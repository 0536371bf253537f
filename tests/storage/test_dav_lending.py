"""Tokens for single files, signed with a key that a real XRootD believes."""

import ssl
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import aiohttp
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from khomas.storage.conformance.content import problems, write
from khomas.storage.protocols.dav.protocol import DavProtocol
from khomas.storage.protocols.interface import Lending, Problem, ProtocolFault, Remote
from tests.storage.dav import opened
from tests.testbeds.tokens import ISSUER
from tests.testbeds.web import WebServer
from tests.testbeds.xrootd import Xrootd

MINUTES = timedelta(minutes=5)


@pytest.fixture
def server(xrootd: Xrootd) -> WebServer:
    xrootd.servers[0].start()
    return xrootd.servers[0]


@pytest.fixture
async def protocol(xrootd: Xrootd, server: WebServer, tmp_path: Path) -> AsyncIterator[Lending]:
    key = tmp_path / "lender.pem"
    key.touch(mode=0o600)
    key.write_bytes(xrootd.issuer.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    folder = server.open_folder(f"lent-{uuid4().hex}")
    protocol = opened(server, folder.name, lender=ISSUER, lender_key=str(key), lender_key_id="khomas-test")
    for path in ("run_1.fits", "run_1.fits2", "other"):
        await write(protocol, path, b"0123456789")
    assert isinstance(protocol, DavProtocol)
    yield protocol
    await protocol.close()


async def test_token_reads_one_file_and_what_begins_like_it(protocol: Lending, server: WebServer) -> None:
    lent, longer, other = await protocol.lend(["run_1.fits", "run_1.fits2", "other"], MINUTES)
    assert isinstance(lent, Remote)
    assert isinstance(longer, Remote)
    assert isinstance(other, Remote)
    asked = [("GET", lent), ("GET", other), ("GET", longer), ("PUT", lent), ("DELETE", lent)]
    trust = ssl.create_default_context(capath=str(server.authorities))
    connector = aiohttp.TCPConnector(ssl=trust)
    statuses = []
    async with aiohttp.ClientSession(connector=connector, requote_redirect_url=False) as http:
        for method, remote in asked:
            async with http.request(method, remote.url, headers={**lent.headers, "Range": "bytes=3-5"}) as answer:
                statuses.append(answer.status)
                if answer.status == 206:
                    assert await answer.read() == b"345"
    # XRootD 5.5.3 takes a scope for the beginning of a name.
    assert statuses == [206, 403, 206, 403, 403]


async def test_without_a_lender_nothing_is_lent(server: WebServer) -> None:
    protocol = opened(server, "")
    assert isinstance(protocol, Lending)
    assert problems(await protocol.lend(["file"], MINUTES)) == [Problem.UNSUPPORTED]


async def test_names_that_would_end_a_scope_are_not_lent(protocol: Lending) -> None:
    """A scope of `/folder/a b` is one of `/folder/a`, and of all that begins so."""
    names = ["a b", "a%20b", "größe", "plain"]
    assert problems(await protocol.lend(names, MINUTES)) == [Problem.UNSUPPORTED] * 3 + [None]


async def test_key_that_is_none_is_told_without_showing_it(server: WebServer, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret")
    protocol = opened(server, "", lender=ISSUER, lender_key=str(key))
    assert isinstance(protocol, Lending)
    with pytest.raises(ProtocolFault, match="no key for ES256") as caught:
        await protocol.lend(["file"], MINUTES)
    assert caught.value.problem is Problem.CREDENTIAL
    assert "secret" not in caught.value.message


def test_half_a_lender_is_refused(server: WebServer) -> None:
    with pytest.raises(ValueError, match="both lender and lender_key"):
        opened(server, "", lender=ISSUER)
