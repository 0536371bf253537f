"""A stand-in for FTS3, written from the documentation of its REST interface: emulated, it only copies local files."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from aiohttp import web

FINAL = ("FINISHED", "FAILED", "CANCELED")


@dataclass(slots=True)
class Fts:
    """What a test sees of the server and changes in it."""

    address: str = ""
    jobs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    params: list[dict[str, Any]] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    credentials: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    polls: int = 0
    # Answer every request with this status; 0 = do what is asked.
    refuses: int = 0
    # Files stay ACTIVE while it is not set.
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    # What becomes of a file instead of a copy: (state, reason).
    fate: tuple[str, str] | None = None
    # A request for a proxy that the server has a key for.
    request: str = ""


@asynccontextmanager
async def running() -> AsyncIterator[Fts]:
    """Serve on a free port of the loopback interface."""
    fts = Fts()
    fts.go_on.set()
    app = web.Application(middlewares=[_refusing(fts)])
    app.add_routes(
        [
            web.post("/jobs", partial(_submit, fts)),
            web.get("/jobs/{id}/files", partial(_files, fts)),
            web.delete("/jobs/{id}", partial(_cancel, fts)),
            web.get("/whoami", _whoami),
            web.get("/delegation/{id}/request", partial(_request, fts)),
            web.put("/delegation/{id}/credential", partial(_credential, fts)),
        ]
    )
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        fts.address = f"http://{host}:{port}"
        yield fts
    finally:
        await runner.cleanup()


def _refusing(fts: Fts) -> Any:
    @web.middleware
    async def refuse(request: web.Request, handler: Any) -> web.StreamResponse:
        fts.tokens.add(request.headers.get("Authorization", ""))
        if fts.refuses:
            return web.json_response({"message": "no"}, status=fts.refuses)
        answer: web.StreamResponse = await handler(request)
        return answer

    return refuse


async def _submit(fts: Fts, request: web.Request) -> web.Response:
    job, name = await request.json(), str(uuid4())
    fts.params.append(job["params"])
    fts.jobs[name] = [
        {
            "file_id": number,
            "file_state": "SUBMITTED",
            "reason": None,
            "source_surl": one["sources"][0],
            "dest_surl": one["destinations"][0],
            "checksum": one["checksum"],
            "user_filesize": one["filesize"],
            "file_metadata": one["metadata"],
            "transferred": 0,
        }
        for number, one in enumerate(job["files"], 1)
    ]
    return web.json_response({"job_id": name})


async def _files(fts: Fts, request: web.Request) -> web.Response:
    fts.polls += 1
    files = fts.jobs.get(request.match_info["id"])
    if files is None:
        return web.json_response({"message": "no such job"}, status=404)
    for one in files:
        _step(fts, one)
    return web.json_response(files)


def _step(fts: Fts, one: dict[str, Any]) -> None:
    """Bring a file one state further."""
    if one["file_state"] in FINAL:
        return
    if one["file_state"] == "SUBMITTED":
        one["file_state"] = "ACTIVE"
    elif not fts.go_on.is_set():
        one["transferred"] = one["user_filesize"] // 2
    elif fts.fate is not None:
        one["file_state"], one["reason"] = fts.fate
    else:
        source, target = _path(one["source_surl"]), _path(one["dest_surl"])
        shutil.copyfile(source, target)
        one["file_state"], one["transferred"] = "FINISHED", target.stat().st_size


def _path(url: str) -> Path:
    return Path(unquote(urlsplit(url).path))


async def _cancel(fts: Fts, request: web.Request) -> web.Response:
    for name in request.match_info["id"].split(","):
        fts.cancelled.append(name)
        for one in fts.jobs.get(name, []):
            if one["file_state"] not in FINAL:
                one["file_state"], one["reason"] = "CANCELED", "Job canceled by the user"
    return web.json_response({})


async def _whoami(_: web.Request) -> web.Response:
    return web.json_response({"delegation_id": "0123456789abcdef"})


async def _request(fts: Fts, _: web.Request) -> web.Response:
    return web.Response(text=fts.request)


async def _credential(fts: Fts, request: web.Request) -> web.Response:
    fts.credentials.append(await request.text())
    return web.Response(status=201)
