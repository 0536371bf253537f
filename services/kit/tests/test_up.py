"""`khomas up` as a process of its own, and its parts."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from khomas.kit.channel import ServiceChannel, open_channel
from khomas.kit.config import ConfigError, TelemetrySettings
from khomas.kit.testing.echo import Request, echo_service, method
from khomas.kit.up import Options, parsed, up

PROGRAM = """
import asyncio, sys
from khomas.kit import up
from khomas.kit.testing.echo import echo_service
up.load_all = lambda group: {"echo": echo_service()}
sys.exit(up.main(sys.argv[1:]))
"""


class Token:
    def __init__(self, text: str) -> None:
        self.text = text

    def token(self) -> str:
        return self.text


def options(state: Path, port: int = 0, ready_file: Path | None = None, vo: str = "") -> Options:
    return Options(state, port, ready_file, vo)


@asynccontextmanager
async def started(chosen: Options) -> AsyncIterator[dict[str, Any]]:
    """Run in this process; yield what endpoint.json says."""
    stop = asyncio.Event()
    task = asyncio.create_task(up([echo_service()], chosen, stop, TelemetrySettings()))
    file = chosen.ready_file or chosen.state / "endpoint.json"
    try:
        await asyncio.wait([task, asyncio.create_task(_appeared(file))], timeout=10, return_when="FIRST_COMPLETED")
        yield _facts(file)
    finally:
        stop.set()
        await task


async def _appeared(file: Path) -> None:
    for _ in range(1000):
        if await asyncio.to_thread(file.exists):
            return
        await asyncio.sleep(0.01)


def _facts(file: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(file.read_text())
    return facts


def _token(facts: dict[str, Any]) -> Token:
    file = Path(facts["token_file"])
    assert file.stat().st_mode & 0o777 == 0o600
    return Token(file.read_text())


async def echoed(facts: dict[str, Any]) -> str:
    async with open_channel(facts["endpoint"], plaintext=True) as bare:
        channel = ServiceChannel(bare, "echo", _token(facts))
        return str((await method(channel, "Echo")(Request(cursor="a"))).cursor)


async def test_token_and_endpoint_files_are_all_that_a_client_needs(tmp_path: Path) -> None:
    async with started(options(tmp_path, ready_file=tmp_path / "ready")) as facts:
        assert await echoed(facts) == "a"
        assert _facts(tmp_path / "endpoint.json") == facts
    assert not await asyncio.to_thread((tmp_path / "endpoint.json").exists)


async def test_second_run_on_the_same_state_is_refused(tmp_path: Path) -> None:
    async with started(options(tmp_path)):
        with pytest.raises(ConfigError, match="Another"):
            await up([], options(tmp_path), asyncio.Event(), TelemetrySettings())


async def test_restart_takes_the_former_ports(tmp_path: Path) -> None:
    async with started(options(tmp_path)) as facts:
        first = facts["endpoint"]
    async with started(options(tmp_path)) as facts:
        assert facts["endpoint"] == first


async def test_port_in_use_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="--port"):
        await up([], options(tmp_path, port=taken.getsockname()[1]), asyncio.Event(), TelemetrySettings())


async def test_vo_is_fixed_at_the_first_start(tmp_path: Path) -> None:
    async with started(options(tmp_path, vo="hess")):
        pass
    async with started(options(tmp_path)):
        pass
    with pytest.raises(ConfigError, match="hess"):
        await up([], options(tmp_path, vo="cta"), asyncio.Event(), TelemetrySettings())


def test_default_endpoint_is_the_documented_one() -> None:
    assert parsed([]).port == 7443


async def test_process_drains_on_sigterm(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    state = tmp_path / "state"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(program), "--state", str(state), "--port", "0"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"USER": "alice"},
    )
    assert process.stdout is not None
    exports = [(await process.stdout.readline()).decode().strip() for _ in range(2)]
    facts = _facts(state / "endpoint.json")
    assert exports == [f"export KHOMAS_ENDPOINT={facts['endpoint']}", f"export BEARER_TOKEN_FILE={state}/token"]
    async with open_channel(facts["endpoint"], plaintext=True) as bare:
        channel = ServiceChannel(bare, "echo", _token(facts))
        stream = method(channel, "Repeat")(Request(cursor="a"))
        assert (await stream.read()).cursor == "a"
        process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.aio.AioRpcError):
            await stream.read()
    _, errors = await asyncio.wait_for(process.communicate(), 20)
    assert (process.returncode, errors) == (0, b"")
