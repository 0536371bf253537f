"""Bytes between local files and the storage: checked on the way, never half a file."""

import http.client
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from khomas.client.errors import KhomasError

# Large reads keep both the disk and the checksum busy; 4 MiB measured best.
BLOCK = 4 * 1024 * 1024
_SECONDS = 60.0
Progress = Callable[[int], None]


class Damaged(KhomasError):
    """What arrived is not what was sent."""

    def __init__(self, name: str, expected: str, received: str) -> None:
        super().__init__(f"{name} arrived with adler32 {received} instead of {expected}", "CHECKSUM_MISMATCH")


def copy(source: Path, target: Path, progress: Progress, expected: str = "") -> str:
    """Copy a file on this machine and return its adler32.

    The target changes only once all bytes are there and have the expected checksum; else raises `Damaged`.
    """
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with source.open("rb", buffering=0) as reading, part.open("xb", buffering=0) as writing:
            checksum = _pump(reading, writing.write, progress)
        _compare(target, expected, checksum)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return checksum


def _compare(target: Path, expected: str, received: str) -> None:
    if expected and received != expected:
        raise Damaged(str(target), expected, received)


def _pump(reading: BinaryIO, write: Callable[[memoryview], object], progress: Progress) -> str:
    buffer = bytearray(BLOCK)
    view = memoryview(buffer)
    checksum = 1
    while length := reading.readinto(buffer):  # type: ignore[attr-defined]  # raw files have it
        block = view[:length]
        checksum = zlib.adler32(block, checksum)
        written = 0
        while written < length:
            written += write(block[written:])  # type: ignore[operator]  # raw files return the count
        progress(length)
    return f"{checksum:08x}"


def upload(source: Path, url: str, headers: Mapping[str, str], progress: Progress) -> str:
    """PUT a file and return its adler32."""
    connection, target = _connect(url)
    checksum = 1
    try:
        connection.putrequest("PUT", target)
        for key, value in headers.items():
            connection.putheader(key, value)
        connection.putheader("Content-Length", str(source.stat().st_size))
        connection.endheaders()
        with source.open("rb", buffering=0) as reading:
            buffer = bytearray(BLOCK)
            view = memoryview(buffer)
            while length := reading.readinto(buffer):
                checksum = zlib.adler32(view[:length], checksum)
                connection.send(view[:length])
                progress(length)
        answer = connection.getresponse()
        body = answer.read(4096)
        if answer.status not in (200, 201, 204):
            raise KhomasError(f"The storage answered {answer.status}: {body.decode(errors='replace')}", "HTTP")
    except (OSError, http.client.HTTPException) as error:
        raise KhomasError(f"The upload broke off: {error}", "UPLOAD") from error
    finally:
        connection.close()
    return f"{checksum:08x}"


def download(url: str, headers: Mapping[str, str], target: Path, progress: Progress, expected: str = "") -> None:
    """GET a file; a part that an earlier try left is gone on with.

    The target changes only once all bytes are there and have the expected checksum; else raises `Damaged`.
    """
    part = target.with_name(f".{target.name}.part")
    have = part.stat().st_size if part.exists() else 0
    connection, path = _connect(url)
    try:
        connection.request("GET", path, headers={**headers, **({"Range": f"bytes={have}-"} if have else {})})
        answer = connection.getresponse()
        if answer.status == 416:
            # The part of another version, or a whole one: begin anew.
            part.unlink(missing_ok=True)
            connection.close()
            download(url, headers, target, progress, expected)
            return
        if answer.status not in (200, 206):
            body = answer.read(4096).decode(errors="replace")
            raise KhomasError(f"The storage answered {answer.status}: {body}", "HTTP")
        with part.open("ab" if answer.status == 206 else "wb", buffering=0) as writing:
            _receive(answer, writing, progress)
    except (OSError, http.client.HTTPException) as error:
        raise KhomasError(f"The download broke off: {error}", "DOWNLOAD") from error
    finally:
        connection.close()
    try:
        _compare(target, expected, adler32(part))
    except Damaged:
        part.unlink()
        raise
    part.replace(target)


def _receive(answer: http.client.HTTPResponse, writing: BinaryIO, progress: Progress) -> None:
    buffer = bytearray(BLOCK)
    view = memoryview(buffer)
    while length := answer.readinto(buffer):
        writing.write(view[:length])
        progress(length)


def adler32(path: Path) -> str:
    """Return the checksum of a local file."""
    with path.open("rb", buffering=0) as reading:
        return _pump(reading, len, lambda _: None)


def _connect(url: str) -> tuple[http.client.HTTPConnection, str]:
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    return kind(parts.hostname or "", parts.port, timeout=_SECONDS), target
