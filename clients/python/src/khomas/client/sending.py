"""One file to the storage, from its beginning again when the connection breaks."""

import http.client
import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from khomas.client import bytes_moving
from khomas.client.bytes_moving import BLOCK, EMPTY, Damaged, Progress, shown
from khomas.client.errors import FAILED, KhomasError
from khomas.client.kept_connections import Connections

_PAUSES = (1.0, 5.0)
_CREATED = (200, 201, 204)
_BUSY = (408, 429, 500, 502, 503, 504)
_DIGEST = re.compile(r"adler32=([0-9a-f]{8})", re.IGNORECASE)


class BrokenOff(KhomasError):
    """The connection or the server failed; the same again may work."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What has been sent of a file."""

    size: int
    adler32: str


def send(source: Path, grant: Any, index: int, connections: Connections, progress: Progress) -> Sent:
    """Bring a file to its place in an upload."""
    folder = Path(grant.local_path) if grant.local_path else None
    if folder is not None and os.access(folder, os.W_OK):
        return _copied(source, folder / str(index), connections, progress)
    url = f"{grant.url}{index}"
    for pause in (*_PAUSES, None):
        done = 0

        def count(length: int) -> None:
            nonlocal done
            done += length
            progress(length)

        try:
            return upload(source, url, grant.headers, connections, count)
        except (BrokenOff, Damaged):
            if pause is None:
                raise
            progress(-done)
            connections.pause(pause)
    raise AssertionError  # the last try returns or raises


def _copied(source: Path, target: Path, connections: Connections, progress: Progress) -> Sent:
    def count(length: int) -> None:
        connections.check()
        progress(length)

    try:
        return Sent(*bytes_moving.copy(source, target, count))
    except OSError as error:
        message = f"{source} could not be copied to the storage: {error.strerror or error}"
        raise KhomasError(message, "UPLOAD", exit_code=FAILED) from error


def upload(source: Path, url: str, headers: Mapping[str, str], connections: Connections, progress: Progress) -> Sent:
    """PUT a file once; raises BrokenOff if it may work later."""
    try:
        with source.open("rb", buffering=0) as reading, connections.lease(url) as (connection, target):
            size = os.fstat(reading.fileno()).st_size
            checksum, problem = _put(connection, target, {**headers, "Content-Length": str(size)}, reading, progress)
            _check_answer(source, connection, checksum, problem)
    except (OSError, http.client.HTTPException) as error:
        connections.check()
        raise BrokenOff(f"{source}: the upload broke off: {error}", "UPLOAD") from error
    return Sent(size, checksum)


def _put(
    connection: http.client.HTTPConnection, target: str, headers: Mapping[str, str], reading: Any, progress: Progress
) -> tuple[str, OSError | None]:
    """Send request and body; a server that has seen enough may answer and close before the end of it."""
    left = int(headers["Content-Length"])
    connection.putrequest("PUT", target)
    for key, value in headers.items():
        connection.putheader(key, value)
    connection.endheaders()
    buffer = bytearray(min(BLOCK, max(left, 1)))
    view = memoryview(buffer)
    checksum = EMPTY
    while left and (length := reading.readinto(view[: min(left, len(buffer))])):
        checksum = zlib.adler32(view[:length], checksum)
        try:
            connection.send(view[:length])
        except (BrokenPipeError, ConnectionResetError) as error:
            return shown(checksum), error
        left -= length
        progress(length)
    if left:
        raise KhomasError(f"{reading.name} became shorter while it was read; repeat the command", "UPLOAD")
    return shown(checksum), None


def _check_answer(source: Path, connection: http.client.HTTPConnection, checksum: str, problem: OSError | None) -> None:
    try:
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException):
        raise problem or BrokenOff(f"{source}: the upload broke off before an answer", "UPLOAD") from None
    if answer.status not in _CREATED:
        kind = BrokenOff if answer.status in _BUSY else KhomasError
        raise kind(f"{source}: the storage answered {answer.status}: {body[:4096].decode(errors='replace')}", "HTTP")
    arrived = _DIGEST.search(answer.headers.get("Digest", ""))
    if arrived is not None and arrived[1].lower() != checksum:
        raise Damaged(str(source), f"adler32 {checksum}", f"adler32 {arrived[1].lower()}")
