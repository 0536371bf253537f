"""The client: bytes against `cp`, start-up and size, an empty call against grpc's own."""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import grpc

from khomas.catalog.app import service as catalog
from khomas.client import AsyncClient
from khomas.client.files import Pair
from khomas.kit.testing import echo, serve
from khomas.storage.app import service as storage
from tests.performance.figures import Figure, compared

ROOT = Path(__file__).resolve().parents[2]
_BLOCK = 4 * 1024 * 1024
_CALLS = 500


async def measure(rounds: int, size_bytes: int) -> list[Figure]:
    """Measure everything that a client meets."""
    return [
        await _empty_call(rounds),
        *await _bytes(min(rounds, 3), size_bytes),
        _import_time(rounds),
        *_installed(),
    ]


async def _empty_call(rounds: int) -> Figure:
    """A call through token, policy, validation and telemetry against a bare grpc.aio server."""
    bare = grpc.aio.server()
    echo.add_echo(bare)
    port = bare.add_insecure_port("127.0.0.1:0")
    await bare.start()
    try:
        async with serve(echo.echo_service()) as served, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            return await compared(
                "empty rpc / grpc's own echo",
                lambda: _timed(served.channel),
                lambda: _timed(channel),
                rounds,
            )
    finally:
        await bare.stop(None)


async def _timed(channel: grpc.aio.Channel) -> float:
    call, request = echo.method(channel, "Echo"), echo.Request(cursor="x")
    begin = time.perf_counter()
    for _ in range(_CALLS):
        await call(request)
    return time.perf_counter() - begin


async def _bytes(rounds: int, size_bytes: int) -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="khomas-", dir=ROOT.parent) as name:
        folder = Path(name)
        source = folder / "source"
        _fill(source, size_bytes)
        async with serve(catalog, storage, state=folder / "state") as served:
            client = AsyncClient(served.endpoint, served.token())
            numbers = iter(range(1000))

            async def put() -> float:
                name = f"/hess/bench/{next(numbers)}"
                return await _seconds(lambda: client.files.put([Pair(source, name)]))

            async def get() -> float:
                target = folder / "got"
                target.unlink(missing_ok=True)
                return await _seconds(lambda: client.files.get([Pair(target, "/hess/bench/0")]))

            async def copied() -> float:
                return await asyncio.to_thread(_copied, source, folder / "copy")

            label = f"{size_bytes / 2**30:g} GiB"
            put_ratio = await compared(f"put of {label} / cp + checksum", put, copied, rounds, "<= 1.3")
            get_ratio = await compared(f"get of {label} / cp + checksum", get, copied, rounds, "<= 1.3")
            await client.close()
    return [put_ratio, get_ratio]


async def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    await work()  # type: ignore[misc]  # a coroutine
    return time.perf_counter() - begin


def _fill(path: Path, size_bytes: int) -> None:
    block = os.urandom(_BLOCK)
    with path.open("wb", buffering=0) as file:
        for _ in range(size_bytes // _BLOCK):
            file.write(block)


def _copied(source: Path, target: Path) -> float:
    begin = time.perf_counter()
    subprocess.run(["cp", "--reflink=never", source, target], check=True)
    _checksum(target)
    seconds = time.perf_counter() - begin
    target.unlink()
    return seconds


def _checksum(path: Path) -> int:
    checksum, buffer = 1, bytearray(_BLOCK)
    with path.open("rb", buffering=0) as file:
        while length := file.readinto(buffer):
            checksum = zlib.adler32(memoryview(buffer)[:length], checksum)
    return checksum


def _import_time(rounds: int) -> Figure:
    """Above a bare interpreter."""
    seconds = [_run("import khomas.client") - _run("pass") for _ in range(max(rounds, 5))]
    return Figure("import khomas.client", "s", seconds, "<= 0.3")


def _run(code: str) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - begin


def _installed() -> list[Figure]:
    """What a fresh environment gets."""
    uv = str(Path(sys.executable).parent / "uv")
    with tempfile.TemporaryDirectory(prefix="khomas-") as name:
        target = Path(name) / "site"
        command = [uv, "pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt")]
        command += ["--target", str(target), str(ROOT / "proto/python"), str(ROOT / "clients/python")]
        subprocess.run(command, check=True)
        size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
        count = len(list(target.glob("*.dist-info")))
    return [
        Figure("client, distributions installed", "", [float(count)], "<= 12"),
        Figure("client, size installed", "MB", [size / 1e6], "<= 60"),
    ]
