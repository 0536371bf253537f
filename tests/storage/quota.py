"""A gate before an object store that takes only so much, as a store with a quota does."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp
from aiohttp import web
from yarl import URL

from tests.testbeds.s3 import ObjectStore

_REFUSAL = "<Error><Code>QuotaExceeded</Code><Message>the bucket is full</Message></Error>"
_MIB = 1 << 20


@asynccontextmanager
async def limited(store: ObjectStore, size_bytes: int) -> AsyncIterator[ObjectStore]:
    """Give the store as it looks through the gate, which takes no object or part larger than this."""
    session = aiohttp.ClientSession(auto_decompress=False)

    async def pass_on(request: web.Request) -> web.Response:
        body = await request.read()
        if len(body) > size_bytes:
            return web.Response(status=403, text=_REFUSAL, content_type="application/xml")
        url = URL(f"http://127.0.0.1:{store.port}{request.raw_path}", encoded=True)
        kept = {name: value for name, value in request.headers.items() if name.lower() != "transfer-encoding"}
        async with session.request(request.method, url, headers=kept, data=body, allow_redirects=False) as answer:
            said = {
                name: value
                for name, value in answer.headers.items()
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "server", "date")
            }
            response = web.Response(status=answer.status, body=await answer.read(), headers=said)
            if request.method == "HEAD":
                response.headers["Content-Length"] = answer.headers.get("Content-Length", "0")
            return response

    application = web.Application(client_max_size=1024 * _MIB)
    application.router.add_route("*", "/{path:.*}", pass_on)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield replace(store, port=runner.addresses[0][1])
    finally:
        await runner.cleanup()
        await session.close()
