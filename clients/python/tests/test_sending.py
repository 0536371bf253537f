"""One file to a server that breaks off, is busy, or refuses."""

import os
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from khomas.api.storage.v1.grant_pb2 import AccessGrant
from khomas.client import sending
from khomas.client.errors import KhomasError
from khomas.client.kept_connections import Connections

CONTENT = os.urandom(3 * 1024 * 1024)
CHECKSUM = f"{zlib.adler32(CONTENT):08x}"


@dataclass
class Target:
    """A server that answers each PUT as it is told to, then 201."""

    # "break", or a status, for the first ones.
    answers: list[str]
    received: list[bytes] = field(default_factory=list)
    digest: str = f"adler32={CHECKSUM}"
    url: str = ""

    @property
    def grant(self) -> AccessGrant:
        return AccessGrant(url=f"{self.url}/uploads/u/", headers={"Authorization": "Bearer grant"})


@pytest.fixture
def target() -> Iterator[Target]:
    made = Target([])

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_PUT(self) -> None:
            answer = made.answers.pop(0) if made.answers else "201"
            self.close_connection = answer != "201"
            if answer == "break":
                self.rfile.read(100_000)
                return
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if answer == "201":
                made.received.append(body)
            self.send_response(int(answer))
            self.send_header("Digest", made.digest)
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"said")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sending, "_PAUSES", (0.01, 0.01))
    (tmp_path / "a").write_bytes(CONTENT)
    return tmp_path / "a"


@pytest.fixture
def connections() -> Iterator[Connections]:
    made = Connections()
    yield made
    made.close()


@pytest.mark.parametrize("first", ["break", "503", "429"])
def test_upload_that_broke_is_sent_again_from_the_start(
    target: Target, source: Path, connections: Connections, first: str
) -> None:
    target.answers = [first, first]
    counted: list[int] = []
    sent = sending.send(source, target.grant, 7, connections, counted.append)
    assert (sent.size, sent.adler32) == (len(CONTENT), CHECKSUM)
    assert target.received == [CONTENT]
    assert sum(counted) == len(CONTENT)


def test_third_failure_is_told(target: Target, source: Path, connections: Connections) -> None:
    target.answers = ["break"] * 3
    with pytest.raises(KhomasError, match="broke off"):
        sending.send(source, target.grant, 0, connections, lambda _: None)
    assert target.received == []


def test_refused_upload_is_not_repeated(target: Target, source: Path, connections: Connections) -> None:
    target.answers = ["403"]
    with pytest.raises(KhomasError, match="answered 403: said"):
        sending.send(source, target.grant, 0, connections, lambda _: None)
    assert target.answers == []


def test_other_bytes_than_were_sent_are_sent_again_and_then_told(
    target: Target, source: Path, connections: Connections
) -> None:
    target.digest = "adler32=00000001"
    with pytest.raises(KhomasError, match="arrived with adler32 00000001"):
        sending.send(source, target.grant, 0, connections, lambda _: None)
    assert len(target.received) == 3
