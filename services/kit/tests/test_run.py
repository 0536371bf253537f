"""`khomas-<service>` for production: settings, commands, and a rolling restart."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from aiohttp import web
from grpc_health.v1 import health_pb2, health_pb2_grpc

from khomas.kit.auth.issuer import DEVELOPMENT_HOST, DevelopmentIssuer
from khomas.kit.auth.tokens import IssuedTokens
from khomas.kit.channel import ServiceChannel, open_channel
from khomas.kit.hosting import reserved_socket
from khomas.kit.run import run
from khomas.kit.testing.echo import Request, echo_service, method

PROGRAM = "import sys; from khomas.kit.run import run; from khomas.kit.testing.echo import echo_service; "
PROGRAM += "sys.exit(run(echo_service(), sys.argv[1:]))"
PRODUCTION = {
    "DATABASE_URL": "postgresql+asyncpg://khomas:secret@db/catalog",
    "AUTH__ISSUERS": '[{"url": "https://issuer.example", "vo": "hess"}]',
    "AUTH__AUDIENCES": '["grpcs://khomas.example"]',
    "AUTH__TOKEN_FILE": "/run/token",
}


def configure(monkeypatch: pytest.MonkeyPatch, **changes: str) -> None:
    for name, value in (PRODUCTION | changes).items():
        monkeypatch.setenv(f"KHOMAS_ECHO_{name}", value)


def test_settings_are_printed_without_secrets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(monkeypatch)
    assert run(echo_service(), ["check-config"]) == 0
    printed = capsys.readouterr().out
    assert "secret" not in printed
    assert json.loads(printed)["auth"]["audiences"] == ["grpcs://khomas.example"]


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("DATABASE_URL", "", "database_url"),
        ("AUTH__ISSUERS", "[]", "auth.issuers"),
        ("AUTH__AUDIENCES", "[]", "auth.audiences"),
        ("AUTH__ISSUERS", f'[{{"url": "https://{DEVELOPMENT_HOST}/x", "vo": "hess"}}]', "development issuer"),
        ("SERVER__MAX_CALLS", "0", "max_calls"),
        ("HTTP__LISTEN", "0.0.0.0:8443", "http.public_url"),
        ("PROFILE", "prod", "profile"),
        ("PEERS_CERTIFICATE", "/etc/khomas/peers/tls.crt", "peers_key"),
    ],
)
def test_settings_unfit_for_production_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str, told: str
) -> None:
    configure(monkeypatch, **{name: value})
    assert run(echo_service(), ["check-config"]) == 2
    assert told in capsys.readouterr().err


def test_environment_goes_before_the_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "echo.toml").write_text('vo = "from-file"\n[server]\nmax_calls = 7\n')
    configure(monkeypatch, CONFIG_FILE=str(tmp_path / "echo.toml"), VO="from-environment")
    assert run(echo_service(), ["check-config"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["vo"], printed["server"]["max_calls"]) == ("from-environment", 7)


async def test_production_server_trusts_the_configured_issuer_alone(tmp_path: Path) -> None:
    # The development issuer's key pair serves here as that of a real issuer, published over HTTP.
    signer = DevelopmentIssuer.open(tmp_path, "hess")
    async with _published(signer) as url:
        trusted = replace(signer, url=url, audience="grpcs://khomas.example")
        settings = {
            "PROFILE": "production",
            "AUTH__ISSUERS": json.dumps([{"url": url, "vo": "hess"}]),
            "AUTH__AUDIENCES": '["grpcs://khomas.example"]',
            "AUTH__TOKEN_FILE": str(tmp_path / "token"),
        }
        port = _free_port()
        server = await _serve(tmp_path, port, settings)
        async with open_channel(f"127.0.0.1:{port}", plaintext=True) as bare:
            echo = method(ServiceChannel(bare, "echo", IssuedTokens(trusted, "alice")), "Echo")
            assert (await echo(Request(cursor="a"), timeout=10)).cursor == "a"
            untrusted = method(ServiceChannel(bare, "echo", IssuedTokens(signer, "alice")), "Echo")
            with pytest.raises(grpc.aio.AioRpcError, match="issuer"):
                await untrusted(Request(), timeout=10)
        await _stop(server)


@pytest.mark.parametrize(
    ("audience", "rule"), [("grpcs://khomas.example", None), ("grpcs://other.example", "audience")]
)
async def test_token_is_judged_as_the_server_would(tmp_path: Path, audience: str, rule: str | None) -> None:
    signer = DevelopmentIssuer.open(tmp_path, "hess")
    async with _published(signer) as url:
        settings = PRODUCTION | {"AUTH__ISSUERS": json.dumps([{"url": url, "vo": "hess"}]), "STATE": str(tmp_path)}
        environment = {f"KHOMAS_ECHO_{name}": value for name, value in settings.items()}
        environment["BEARER_TOKEN"] = replace(signer, url=url, audience=audience).token("alice")
        own = await _verdict(environment, "-c", PROGRAM, "explain-token")
        as_told = ("--issuer", url, "--audience", "grpcs://khomas.example")
        told = await _verdict(environment, "-m", "khomas.kit.auth", "explain", *as_told)
    assert own.get("rule") == told.get("rule") == rule


async def _verdict(environment: Mapping[str, str], *command: str) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, env=os.environ | dict(environment), stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await asyncio.wait_for(process.communicate(), 30)
    verdict: dict[str, Any] = json.loads(printed)
    assert process.returncode == (0 if verdict["accepted"] else 1)
    return verdict


@asynccontextmanager
async def _published(signer: DevelopmentIssuer) -> AsyncIterator[str]:
    """Serve discovery and keys of an issuer; yield its address."""
    bound = reserved_socket("127.0.0.1:0")
    url = f"http://127.0.0.1:{bound.getsockname()[1]}"
    key = json.loads(jwt.get_algorithm_by_name("ES256").to_jwk(signer.private_key.public_key()))
    documents = {
        "/.well-known/openid-configuration": {"issuer": url, "jwks_uri": f"{url}/jwks"},
        "/jwks": {"keys": [key | {"kid": signer.key_id}]},
    }

    async def answer(request: web.Request) -> web.Response:
        return web.json_response(documents[request.path])

    application = web.Application()
    application.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.SockSite(runner, bound).start()
    try:
        yield url
    finally:
        await runner.cleanup()


async def test_rolling_restart_fails_no_call(tmp_path: Path) -> None:
    DevelopmentIssuer.open(tmp_path, "hess")
    ports = [_free_port(), _free_port()]
    servers = [await _serve(tmp_path, port) for port in ports]
    failed: list[BaseException] = []
    calls = 0
    rolled = asyncio.Event()
    async with AsyncExitStack() as stack:
        target = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
        bare = await stack.enter_async_context(open_channel(target, plaintext=True))
        tokens = IssuedTokens(DevelopmentIssuer.open(tmp_path, "hess"), "tester")
        echo = method(ServiceChannel(bare, "echo", tokens), "Echo")

        async def keep_calling() -> None:
            nonlocal calls
            while not rolled.is_set():
                try:
                    await echo(Request(cursor="a"))
                    calls += 1
                except Exception as error:  # noqa: BLE001  # whatever it is, it is what this test counts
                    failed.append(error)

        callers = [asyncio.create_task(keep_calling()) for _ in range(8)]
        await _stop(servers[0])
        servers[0] = await _serve(tmp_path, ports[0])
        await asyncio.sleep(1.5)  # for the client to connect again
        await _stop(servers[1])
        rolled.set()
        await asyncio.gather(*callers)
        await _stop(servers[0])
    assert failed == []
    assert calls > 100


async def _serve(state: Path, port: int, changes: Mapping[str, str] | None = None) -> asyncio.subprocess.Process:
    """Start a server process and wait until it serves."""
    settings = {
        "PROFILE": "development",
        "DATABASE_URL": "sqlite+aiosqlite://",
        "STATE": str(state),
        "SERVER__LISTEN": f"127.0.0.1:{port}",
        "SERVER__DRAIN_PAUSE": "PT0.4S",
    }
    environment = os.environ | {
        f"KHOMAS_ECHO_{name}": value for name, value in (settings | dict(changes or {})).items()
    }
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", PROGRAM, "serve", env=environment)
    async with open_channel(f"127.0.0.1:{port}", plaintext=True) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        await health.Check(health_pb2.HealthCheckRequest(service="readiness"), wait_for_ready=True, timeout=20)
    return process


async def _stop(server: asyncio.subprocess.Process) -> None:
    server.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(server.wait(), 20) == 0


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
