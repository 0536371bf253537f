"""One file from the first of its replicas that gives it whole and right."""

import http.client
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from khomas.client.bytes_moving import Damaged, Progress, pump
from khomas.client.errors import KhomasError
from khomas.client.kept_connections import Connections, Stopped
from khomas.client.partial import LocalFault, Part, Wanted, opened

# Smaller than a disk likes, for what a broken connection leaves must not be much less than what it brought.
_BLOCK = 1024 * 1024
_OK, _PARTIAL, _OUT_OF_RANGE = 200, 206, 416


def receive(wanted: Wanted, grants: Sequence[Any], connections: Connections, progress: Progress) -> int:
    """Fetch a file and return how many of its bytes were here already.

    Goes on with what an earlier try left. The target changes only once all bytes are there and have the expected
    checksum. What another replica is to be asked for, is asked for from where the one before broke off.
    """
    problem: KhomasError | None = None
    with opened(wanted) as part:
        had = part.have
        progress(had)
        for grant in grants:
            try:
                _whole(part, grant, connections, progress)
            except (LocalFault, Stopped):
                raise
            except KhomasError as error:
                problem = error
            else:
                part.publish()
                return had
        # The next try counts them again.
        progress(-part.have)
    raise problem or KhomasError(f"{wanted.name} has no copy to read from", "NO_REPLICA")


def _whole(part: Part, grant: Any, connections: Connections, progress: Progress) -> None:
    """Complete a part and check it; what was here before may be what is wrong with it."""
    resumed = part.have > 0
    try:
        _complete(part, grant, connections, progress)
        part.check()
    except Damaged:
        _begin_anew(part, progress)
        if not resumed:
            raise
        _whole(part, grant, connections, progress)


def _complete(part: Part, grant: Any, connections: Connections, progress: Progress) -> None:
    if part.whole:
        return
    if grant.local_path and os.access(grant.local_path, os.R_OK):
        _from_disk(part, Path(grant.local_path), connections, progress)
    else:
        _from_server(part, grant, connections, progress)
    if not part.whole:
        message = f"{part.wanted.name} broke off after {part.have} of {part.wanted.size} bytes"
        raise KhomasError(message, "DOWNLOAD")


def _from_disk(part: Part, source: Path, connections: Connections, progress: Progress) -> None:
    try:
        reading = source.open("rb", buffering=0)
    except OSError as error:
        raise KhomasError(f"{source}: {error.strerror}", "DOWNLOAD") from error
    with reading:
        reading.seek(part.have)
        pump(reading, _into(part, connections), progress)


def _into(part: Part, connections: Connections) -> Any:
    def write(block: memoryview) -> None:
        connections.check()
        part.write(block)

    return write


def _from_server(part: Part, grant: Any, connections: Connections, progress: Progress) -> None:
    address = grant.url.partition("?")[0]
    try:
        with connections.lease(grant.url) as (connection, target):
            connection.request("GET", target, headers={**grant.headers, **_rest(part, address)})
            answer = connection.getresponse()
            _accept(part, answer, progress)
            part.came_from(address, answer.headers.get("ETag", ""))
            _take(part, answer, connections, progress)
    except (OSError, http.client.HTTPException) as error:
        connections.check()
        raise KhomasError(f"{part.wanted.name} broke off: {error}", "DOWNLOAD") from error


def _rest(part: Part, address: str) -> dict[str, str]:
    """Ask for the missing bytes, or for all if the version there is another one by now."""
    if not part.have:
        return {}
    etag = part.etag(address)
    return {"Range": f"bytes={part.have}-", **({"If-Range": etag} if etag else {})}


def _accept(part: Part, answer: http.client.HTTPResponse, progress: Progress) -> None:
    if answer.status == _PARTIAL and answer.headers.get("Content-Range", "").startswith(f"bytes {part.have}-"):
        return
    if part.have and answer.status in (_OK, _OUT_OF_RANGE, _PARTIAL):
        _begin_anew(part, progress)
    if answer.status != _OK:
        body = answer.read(4096).decode(errors="replace")
        raise KhomasError(f"{part.wanted.name}: the storage answered {answer.status}: {body}", "HTTP")


def _take(part: Part, answer: http.client.HTTPResponse, connections: Connections, progress: Progress) -> None:
    buffer = bytearray(min(_BLOCK, max(part.wanted.size, 1)))
    view = memoryview(buffer)
    while length := answer.readinto(buffer):
        connections.check()
        part.write(view[:length])
        progress(length)


def _begin_anew(part: Part, progress: Progress) -> None:
    progress(-part.have)
    part.begin_anew()
