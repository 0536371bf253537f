"""One file from a server that breaks off, changes, lies, or is slow to answer."""

import os
import socket
import subprocess
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from khomas.api.storage.v1.grant_pb2 import AccessGrant
from khomas.client.bytes_moving import Damaged, nothing
from khomas.client.errors import KhomasError
from khomas.client.kept_connections import Connections
from khomas.client.partial import LocalFault, Wanted
from khomas.client.receiving import receive

MIB = 1024 * 1024
CONTENT = os.urandom(8 * MIB)
CUT_AT = 5 * MIB


@dataclass
class Source:
    """A server of one file."""

    content: bytes = CONTENT
    etag: str = '"1"'
    # Break off so many bytes after the beginning of an answer; None for never.
    cut_after: int | None = None
    sent: int = 0
    ranges: list[str] = field(default_factory=list)
    connections: set[int] = field(default_factory=set)
    url: str = ""

    @property
    def grant(self) -> AccessGrant:
        return AccessGrant(url=f"{self.url}/a%20b?signature=x", headers={"X-Grant": "given"})


@contextmanager
def serving(source: Source) -> Iterator[Source]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            source.connections.add(self.client_address[1])
            wanted = self.headers.get("Range", "")
            source.ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").removesuffix("-") or 0)
            if self.headers.get("If-Range", source.etag) != source.etag:
                start = 0
            body = source.content[start:]
            self.send_response(206 if start else 200)
            if start:
                size = len(source.content)
                self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
            self.send_header("ETag", source.etag)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if source.cut_after is not None:
                body = body[: source.cut_after]
                self.close_connection = True
            source.sent += len(body)
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    source.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield source
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def wanted(target: Path, content: bytes = CONTENT, uid: str = "uid") -> Wanted:
    return Wanted(target, "/hess/a b", uid, len(content), f"{zlib.adler32(content):08x}")


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.fixture
def connections() -> Iterator[Connections]:
    made = Connections()
    yield made
    made.close()


@pytest.fixture
def source() -> Iterator[Source]:
    with serving(Source()) as made:
        yield made


def broken_off(one: Wanted, source: Source, connections: Connections) -> None:
    source.cut_after = CUT_AT
    with pytest.raises(KhomasError, match="broke off"):
        receive(one, [source.grant], connections, nothing)
    source.cut_after = None


def test_download_that_broke_off_fetches_only_the_rest(
    source: Source, connections: Connections, tmp_path: Path
) -> None:
    one = wanted(tmp_path / "a")
    broken_off(one, source, connections)
    assert hidden(tmp_path) == [".a.khomas-part", ".a.khomas-part.json"]
    assert not one.target.exists()
    counted: list[int] = []

    had = receive(one, [source.grant], connections, counted.append)

    assert had == CUT_AT
    assert source.ranges == ["", f"bytes={CUT_AT}-"]
    assert source.sent == len(CONTENT)
    assert sum(counted) == len(CONTENT)
    assert one.target.read_bytes() == CONTENT
    assert hidden(tmp_path) == []


def test_another_replica_goes_on_where_one_broke_off(source: Source, connections: Connections, tmp_path: Path) -> None:
    one = wanted(tmp_path / "a")
    source.cut_after = CUT_AT
    with serving(Source(etag='"other"')) as other:
        receive(one, [source.grant, other.grant], connections, nothing)
    assert other.ranges == [f"bytes={CUT_AT}-"]
    assert source.sent + other.sent == len(CONTENT)
    assert one.target.read_bytes() == CONTENT


def test_changed_version_of_the_same_bytes_begins_anew(
    source: Source, connections: Connections, tmp_path: Path
) -> None:
    one = wanted(tmp_path / "a")
    broken_off(one, source, connections)
    source.etag, source.sent = '"2"', 0
    counted: list[int] = []
    receive(one, [source.grant], connections, counted.append)
    assert source.sent == len(CONTENT)
    assert sum(counted) == len(CONTENT)
    assert one.target.read_bytes() == CONTENT


def test_part_of_another_file_of_this_name_is_thrown_away(
    source: Source, connections: Connections, tmp_path: Path
) -> None:
    broken_off(wanted(tmp_path / "a"), source, connections)
    source.content = os.urandom(len(CONTENT))
    source.ranges.clear()
    receive(wanted(tmp_path / "a", source.content, uid="new"), [source.grant], connections, nothing)
    assert source.ranges == [""]
    assert (tmp_path / "a").read_bytes() == source.content


def test_part_that_was_damaged_on_this_disk_is_fetched_again(
    source: Source, connections: Connections, tmp_path: Path
) -> None:
    one = wanted(tmp_path / "a")
    broken_off(one, source, connections)
    with one.part.open("r+b") as part:
        part.write(b"rot" * 100)
    receive(one, [source.grant], connections, nothing)
    assert source.ranges == ["", f"bytes={CUT_AT}-", ""]
    assert one.target.read_bytes() == CONTENT


def test_wrong_bytes_from_one_replica_are_taken_from_another(
    source: Source, connections: Connections, tmp_path: Path
) -> None:
    one = wanted(tmp_path / "a")
    with serving(Source(content=b"x" + CONTENT[1:])) as wrong:
        receive(one, [wrong.grant, source.grant], connections, nothing)
        assert one.target.read_bytes() == CONTENT
        with pytest.raises(Damaged):
            receive(wanted(tmp_path / "b"), [wrong.grant], connections, nothing)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_server_that_sends_more_than_the_file_has_is_not_believed(
    source: Source, connections: Connections, tmp_path: Path
) -> None:
    source.content = CONTENT + b"more"
    with pytest.raises(Damaged, match="arrived with more"):
        receive(wanted(tmp_path / "a"), [source.grant], connections, nothing)
    assert list(tmp_path.iterdir()) == []


def test_one_connection_serves_many_files(source: Source, connections: Connections, tmp_path: Path) -> None:
    source.content = b"small"
    for number in range(50):
        receive(wanted(tmp_path / str(number), b"small"), [source.grant], connections, nothing)
    assert len(source.connections) == 1


def test_part_is_written_by_one_process_at_a_time(source: Source, connections: Connections, tmp_path: Path) -> None:
    one = wanted(tmp_path / "a")
    refused: list[str] = []

    def meanwhile(length: int) -> None:
        if not refused:
            with pytest.raises(LocalFault, match="another process") as failure:
                receive(one, [source.grant], connections, nothing)
            refused.append(failure.value.reason)

    receive(one, [source.grant], connections, meanwhile)
    assert refused == ["LOCAL_FILE"]
    assert one.target.read_bytes() == CONTENT


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_disk_that_runs_full_is_no_fault_of_the_server_and_what_came_is_kept(
    source: Source, connections: Connections, small_disk: Path
) -> None:
    one = wanted(small_disk / "a")
    with pytest.raises(LocalFault, match="the disk is full") as failure:
        receive(one, [source.grant, source.grant], connections, nothing)
    assert failure.value.reason == "NO_SPACE"
    assert len(source.ranges) == 1
    subprocess.run(["mount", "-o", "remount,size=16m", small_disk], check=True)
    assert receive(one, [source.grant], connections, nothing) >= 3 * MIB
    assert [path.name for path in small_disk.iterdir()] == ["a"]
    assert one.target.read_bytes() == CONTENT


def test_name_as_long_as_the_disk_allows_is_fetched(source: Source, connections: Connections, tmp_path: Path) -> None:
    target = tmp_path / ("é" * 127)
    broken_off(wanted(target), source, connections)
    assert receive(wanted(target), [source.grant], connections, nothing) == CUT_AT
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_who_stops_is_not_kept_waiting_by_a_silent_server(connections: Connections, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        grant = AccessGrant(url=f"http://127.0.0.1:{silent.getsockname()[1]}/a")
        failures: list[KhomasError] = []

        def fetch() -> None:
            with pytest.raises(KhomasError) as failure:
                receive(wanted(tmp_path / "a"), [grant], connections, nothing)
            failures.append(failure.value)

        thread = threading.Thread(target=fetch)
        thread.start()
        asked, _ = silent.accept()
        asked.recv(10)
        connections.stop()
        thread.join(30)
        asked.close()
    assert [failure.reason for failure in failures] == ["CANCELLED"]
