"""Reading through the door from a storage that is elsewhere: the bytes pass, nothing is kept."""

from contextlib import aclosing

from aiohttp import hdrs, web

from khomas.storage.protocols.interface import Entry, Kind, Problem, ProtocolFault, StorageProtocol


async def relayed(request: web.Request, protocol: StorageProtocol, path: str, adler32: str) -> web.StreamResponse:
    """Answer GET and HEAD with what the storage gives; cut off, the answer is too short and nobody takes it for all."""
    (entry,) = await protocol.stat([path])
    if not isinstance(entry, Entry):
        raise entry
    if entry.kind is not Kind.FILE:
        raise ProtocolFault(Problem.ABSENT, f"{path} is no file")
    start, size_bytes = _part(request, entry.size_bytes)
    whole = request.headers.get(hdrs.RANGE) is None
    response = web.StreamResponse(status=200 if whole else 206, headers={"Accept-Ranges": "bytes"})
    response.content_type = "application/octet-stream"
    response.content_length = size_bytes
    if adler32:
        response.headers["Digest"] = f"adler32={adler32}"
    if not whole:
        response.headers[hdrs.CONTENT_RANGE] = f"bytes {start}-{start + size_bytes - 1}/{entry.size_bytes}"
    await response.prepare(request)
    if request.method == hdrs.METH_HEAD:
        return response
    async with aclosing(protocol.get(path, start, size_bytes)) as blocks:
        async for block in blocks:
            await response.write(block)
    await response.write_eof()
    return response


def _part(request: web.Request, total: int) -> tuple[int, int]:
    """Return where the wanted range begins and how long it is."""
    try:
        wanted = request.http_range
    except ValueError:
        raise web.HTTPRequestRangeNotSatisfiable(headers={hdrs.CONTENT_RANGE: f"bytes */{total}"}) from None
    start, stop, _ = wanted.indices(total)
    if request.headers.get(hdrs.RANGE) is not None and start >= stop:
        raise web.HTTPRequestRangeNotSatisfiable(headers={hdrs.CONTENT_RANGE: f"bytes */{total}"})
    return start, stop - start
