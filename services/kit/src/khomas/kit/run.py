"""`khomas-<service> serve|migrate|check-config|explain-token`: one service for production."""

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

import grpc
from pydantic import ValidationError

from khomas.kit.auth.issuer import DevelopmentIssuer, is_development
from khomas.kit.auth.tokens import FileTokens, IssuedTokens, TokenSource
from khomas.kit.auth.verifier import Issuer, Verifier
from khomas.kit.boundary.boundary import Boundary
from khomas.kit.channel import ServiceChannel, open_channel
from khomas.kit.config import ConfigError, Profile, ServiceSettings
from khomas.kit.hosting import Place, hosted, reserved_socket
from khomas.kit.memory import settle
from khomas.kit.server import Server
from khomas.kit.service import Host, Service
from khomas.kit.telemetry.logs import log_to
from khomas.kit.telemetry.setup import recording

_EVERYWHERE = ("0.0.0.0", "[::]")  # noqa: S104  nothing is bound here


def run(service: Service[Any], arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; the body of a service's `__main__.py`."""
    parser = argparse.ArgumentParser(prog=f"khomas-{service.name}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="serve until SIGTERM, then let calls finish")
    commands.add_parser("migrate", help="bring the database up to date")
    commands.add_parser("check-config", help="print the settings, secrets starred, or what is wrong with them")
    commands.add_parser("explain-token", help="say what the token in use allows here, or the rule that refuses it")
    command = parser.parse_args(arguments).command
    try:
        settings = service.settings()
        check(settings)
        return _COMMANDS[command](service, settings) or 0
    except (ConfigError, ValidationError) as error:
        sys.stderr.write(f"{error}\n")
        return 2


def check(settings: ServiceSettings) -> None:
    """Raise ConfigError for settings that are not fit for their profile."""
    if not settings.database_url.get_secret_value():
        raise ConfigError("Set database_url: postgresql+asyncpg://user@host/database")
    if (settings.peers_certificate is None) != (settings.peers_key is None):
        raise ConfigError("Set peers_certificate and peers_key, or neither.")
    if settings.http.listen.rpartition(":")[0] in _EVERYWHERE and not settings.http.public_url:
        raise ConfigError(f"Set http.public_url: {settings.http.listen} is no address by which others reach the door.")
    if settings.profile is Profile.DEVELOPMENT:
        return
    if not settings.auth.issuers:
        raise ConfigError("Set auth.issuers: without a trusted issuer nobody could call.")
    for issuer in settings.auth.issuers:
        if is_development(issuer.url):
            raise ConfigError(f"{issuer.url} is a development issuer, which the production profile refuses.")
    if not settings.auth.audiences:
        raise ConfigError("Set auth.audiences: the names by which tokens mean this service.")
    if settings.auth.token_file is None:
        raise ConfigError("Set auth.token_file: the token of this service towards the others.")


def _print(_: Service[Any], settings: ServiceSettings) -> None:
    sys.stdout.write(json.dumps(settings.redacted(), indent=2) + "\n")


def _migrate(service: Service[Any], settings: ServiceSettings) -> None:
    if service.migrate is not None:
        asyncio.run(service.migrate(settings.database_url.get_secret_value()))


def _explain(service: Service[Any], settings: ServiceSettings) -> int:
    from khomas.kit.auth.explain import found_token, judge

    settings.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    verifier, _, _ = _identity(service, settings)
    return judge(found_token(), verifier)


def _serve(service: Service[Any], settings: ServiceSettings) -> None:
    log_to(level=settings.telemetry.log_level)
    asyncio.run(_until_signal(service, settings))


async def _until_signal(service: Service[Any], settings: ServiceSettings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    settings.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    async with AsyncExitStack() as stack:
        recorder = stack.enter_context(recording(service.name, settings.telemetry))
        verifier, tokens, issuer = _identity(service, settings)
        limits = settings.server
        server = Server(limits, Boundary(verifier, recorder, limits.max_calls, limits.max_streams))
        server.bind()
        channel = _channels(settings, tokens, stack)
        door = reserved_socket(settings.http.listen)
        host = Host(
            service=service.name,
            vo=settings.vo,
            state=settings.state,
            database_url=settings.database_url.get_secret_value(),
            verifier=verifier,
            tokens=tokens,
            issuer=issuer,
            channel=channel,
            http_url=settings.http.public_url or "http://{}:{}".format(*door.getsockname()),
            gauge=recorder.gauge,
        )
        await stack.enter_async_context(hosted(server, [Place(service, settings, host, door)]))
        settle()
        await stop.wait()


def _identity(
    service: Service[Any], settings: ServiceSettings
) -> tuple[Verifier, TokenSource, DevelopmentIssuer | None]:
    """Return who is trusted, who we are, and in the development profile the issuer of both."""
    if settings.profile is Profile.DEVELOPMENT:
        issuer = DevelopmentIssuer.open(settings.state, settings.vo)
        auth = settings.auth.model_copy(update={"audiences": (*settings.auth.audiences, issuer.audience)})
        return Verifier([issuer.trusted], auth), IssuedTokens(issuer, f"service:{service.name}"), issuer
    if settings.auth.token_file is None:
        raise ConfigError("Set auth.token_file.")
    return _verifier(settings), FileTokens(settings.auth.token_file), None


def _verifier(settings: ServiceSettings) -> Verifier:
    # With its HTTP client it is 8 MiB, which only those pay who have a remote issuer.
    from khomas.kit.auth.jwks import RemoteKeys

    folder = settings.state / "jwks"
    folder.mkdir(exist_ok=True, mode=0o700)
    keys = {issuer.url: RemoteKeys(issuer.url, folder, jwks_url=issuer.jwks_url) for issuer in settings.auth.issuers}
    trusted = [Issuer(issuer.url, issuer.vo, keys[issuer.url]) for issuer in settings.auth.issuers]
    verifier = Verifier(trusted, settings.auth)
    for source in keys.values():
        source.when_changed(verifier.forget)
    return verifier


def _channels(
    settings: ServiceSettings, tokens: TokenSource, stack: AsyncExitStack
) -> Callable[[str], grpc.aio.Channel]:
    """Return what opens a channel to the service of an area; the stack closes them."""
    certificate, key = settings.peers_certificate, settings.peers_key
    if certificate is None and settings.server.tls is not None:
        certificate, key = settings.server.tls.certificate, settings.server.tls.key

    def channel(area: str) -> grpc.aio.Channel:
        target = settings.peers.get(area)
        if target is None:
            raise ConfigError(f"Set peers.{area}: the address of that service.")
        plaintext = target.startswith("unix:") or target.removeprefix("dns:///").startswith(
            ("127.0.0.1:", "localhost:")
        )
        connection = open_channel(target, settings.peers_ca, certificate, key, plaintext=plaintext)
        stack.push_async_callback(connection.close)
        return ServiceChannel(connection, area, tokens)

    return channel


_COMMANDS: Mapping[str, Callable[[Service[Any], ServiceSettings], int | None]] = {
    "serve": _serve,
    "migrate": _migrate,
    "check-config": _print,
    "explain-token": _explain,
}
