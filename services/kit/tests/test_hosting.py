"""Services start, run loops and doors, reach each other and stop in order."""

import asyncio
import logging
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from aiohttp import web

from khomas.kit.boundary.call import current_principal
from khomas.kit.channel import open_channel
from khomas.kit.service import Host, Running, Service
from khomas.kit.testing import serve
from khomas.kit.testing.echo import EchoSettings, Reply, Request, add_echo, echo_service, method


def service(name: str = "probe", **parts: Any) -> Service[EchoSettings]:
    """Return a service with nothing but these parts."""

    async def start(_: EchoSettings, __: Host) -> Running:
        return replace(Running(add_to=lambda server: None), **parts)

    return Service(name, EchoSettings, start)


async def test_service_calls_another_as_itself() -> None:
    seen = []

    async def answer(_: Request) -> Reply:
        seen.append((current_principal().subject, current_principal().kind.value))
        return Reply()

    hosts: list[Host] = []

    async def start(_: EchoSettings, host: Host) -> Running:
        hosts.append(host)
        return Running(add_to=lambda server: None)

    async with serve(echo_service(answer), Service("caller", EchoSettings, start)):
        await method(hosts[0].channel("echo"), "Echo")(Request())
    assert seen == [("service:caller", "service")]


async def test_each_service_has_its_own_folder_and_database(tmp_path: Path) -> None:
    hosts: list[Host] = []

    async def start(_: EchoSettings, host: Host) -> Running:
        hosts.append(host)
        return Running(add_to=lambda server: None)

    urls = {"b": "postgresql+asyncpg://db/b"}
    async with serve(
        Service("a", EchoSettings, start), Service("b", EchoSettings, start), state=tmp_path, database_urls=urls
    ):
        assert [host.state for host in hosts] == [tmp_path / "a", tmp_path / "b"]
        assert [host.state.is_dir() for host in hosts] == [True, True]
        assert [host.database_url for host in hosts] == [f"sqlite+aiosqlite:///{tmp_path}/a/a.sqlite", urls["b"]]


async def test_database_is_migrated_before_the_start() -> None:
    order = []

    async def migrate(url: str) -> None:
        order.append(url.partition(":")[0])

    async def start(_: EchoSettings, __: Host) -> Running:
        order.append("start")
        return Running(add_to=lambda server: None)

    async with serve(Service("probe", EchoSettings, start, migrate)):
        assert order == ["sqlite+aiosqlite", "start"]


async def test_settings_reach_the_service() -> None:
    seen = []

    async def start(settings: EchoSettings, __: Host) -> Running:
        seen.append(settings.vo)
        return Running(add_to=lambda server: None)

    async with serve(Service("probe", EchoSettings, start), settings={"probe": {"vo": "cta"}}):
        assert seen == ["cta"]


async def test_loop_that_raises_is_logged_and_started_again(caplog: pytest.LogCaptureFixture) -> None:
    runs: list[int] = []
    again = asyncio.Event()

    async def loop() -> None:
        runs.append(1)
        if len(runs) == 1:
            raise RuntimeError("once")
        again.set()

    async with serve(service(background={"loop": loop})):
        await asyncio.wait_for(again.wait(), 5)
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert (record.message, record.__dict__["loop"]) == ("loop.failed", "probe.loop")


async def test_parts_stop_after_the_calls_and_close_comes_last() -> None:
    order: list[str] = []

    async def loop() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            order.append("loop")

    async def close() -> None:
        order.append("close")

    async def answer(_: Request) -> Reply:
        await asyncio.sleep(0.2)
        order.append("call")
        return Reply()

    async def start(_: EchoSettings, __: Host) -> Running:
        return Running(add_to=lambda server: add_echo(server, answer), background={"loop": loop}, close=close)

    outside = AsyncExitStack()
    async with serve(Service("probe", EchoSettings, start)) as served:
        channel = await outside.enter_async_context(open_channel(served.endpoint, plaintext=True))
        call = asyncio.ensure_future(method(channel, "Open")(Request()))
        await asyncio.sleep(0.1)
    await call
    await outside.aclose()
    assert order == ["call", "loop", "close"]


async def test_service_that_fails_to_start_closes_those_before_it() -> None:
    closed = []

    async def close() -> None:
        closed.append("first")

    async def fail(_: EchoSettings, __: Host) -> Running:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        async with serve(service(close=close), Service("second", EchoSettings, fail)):
            pass
    assert closed == ["first"]


async def test_door_answers_where_the_host_said() -> None:
    urls = []

    async def start(_: EchoSettings, host: Host) -> Running:
        urls.append(host.http_url)
        application = web.Application()

        async def hello(_: web.Request) -> web.Response:
            return web.Response(text="hello")

        application.router.add_get("/hello", hello)
        return Running(add_to=lambda server: None, http=application)

    async with serve(Service("probe", EchoSettings, start)) as served, aiohttp.ClientSession() as session:
        assert served.http == {"probe": urls[0]}
        async with session.get(f"{urls[0]}/hello") as response:
            assert await response.text() == "hello"


async def test_service_that_is_not_hosted_is_not_installed() -> None:
    hosts: list[Host] = []

    async def start(_: EchoSettings, host: Host) -> Running:
        hosts.append(host)
        return Running(add_to=lambda server: None)

    async with serve(Service("caller", EchoSettings, start)):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await method(hosts[0].channel("echo"), "Echo")(Request())
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_same_state_served_again_keeps_its_issuer(tmp_path: Path) -> None:
    async with serve(echo_service(), state=tmp_path) as served:
        token = served.token()
    async with serve(echo_service(), state=tmp_path) as served:
        assert (await method(served.channel_with(token), "Echo")(Request(cursor="a"))).cursor == "a"
