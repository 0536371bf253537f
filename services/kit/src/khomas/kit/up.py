"""`khomas up`: all installed services in one process on one loopback port."""

import argparse
import asyncio
import fcntl
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings

from khomas.kit.auth.issuer import DevelopmentIssuer
from khomas.kit.config import ConfigError, TelemetrySettings
from khomas.kit.embedded import SETTINGS, Installation, Layout, embedded
from khomas.kit.files import write_atomically
from khomas.kit.hosting import reserved_socket
from khomas.kit.memory import settle
from khomas.kit.plugins import PluginBroken, load_all
from khomas.kit.service import Service
from khomas.kit.telemetry.logs import log_to
from khomas.kit.telemetry.setup import recording

DEFAULT_PORT = 7443
_TOKEN_LIFETIME = timedelta(hours=5)
_TOKEN_RENEWAL = timedelta(hours=1)


class UpSettings(BaseSettings, env_prefix="KHOMAS_UP_", env_nested_delimiter="__"):
    """What is not for the command line: `KHOMAS_UP_TELEMETRY__LOG_LEVEL` and the like."""

    telemetry: TelemetrySettings = TelemetrySettings()


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    state: Path
    port: int
    ready_file: Path | None
    vo: str


def default_state() -> Path:
    """Return the state folder of this user."""
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "khomas"


def parsed(arguments: Sequence[str] | None = None) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="khomas up", description=__doc__)
    parser.add_argument("--state", type=Path, default=default_state(), help="folder for everything (%(default)s)")
    parser.add_argument(
        "--port", type=int, default=DEFAULT_PORT, help="gRPC port (%(default)s); 0 = the former one, else a free one"
    )
    parser.add_argument("--ready-file", type=Path, help="written once the services answer")
    parser.add_argument("--vo", default="", help="name of the virtual organisation, fixed at the first start (local)")
    found = parser.parse_args(arguments)
    return Options(found.state.absolute(), found.port, found.ready_file, found.vo)


async def up(
    services: Sequence[Service[Any]], options: Options, stop: asyncio.Event, telemetry: TelemetrySettings
) -> None:
    """Run the services until `stop` is set."""
    options.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    with ExitStack() as stack:
        stack.enter_context(_only_one(options.state))
        recorder = stack.enter_context(recording("up", telemetry))
        layout = _layout(services, options)
        async with embedded(services, layout, recorder) as installation, _token_file(installation.issuer, layout):
            _announce(installation, options)
            settle()
            await stop.wait()
            (options.state / "endpoint.json").unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT, then let calls finish."""
    options = parsed(arguments)
    try:
        telemetry = UpSettings().telemetry
        log_to(level=telemetry.log_level)
        services = list(load_all("khomas.services").values())
        asyncio.run(_until_signal(services, options, telemetry))
    except (ConfigError, PluginBroken, ValidationError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


async def _until_signal(services: Sequence[Service[Any]], options: Options, telemetry: TelemetrySettings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await up(services, options, stop, telemetry)


@contextmanager
def _only_one(state: Path) -> Iterator[None]:
    """Hold the state folder; a second process on the same databases would break both."""
    with (state / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"Another `khomas up` runs on {state}; stop it or give another --state.") from error
        yield


def _layout(services: Sequence[Service[Any]], options: Options) -> Layout:
    """Choose the addresses: those of the former run where they are free, since grants may name them."""
    file = options.state / "ports.json"
    former: Mapping[str, int] = json.loads(file.read_text()) if file.exists() else {}
    grpc_port = _required(options.port) if options.port else _free(former.get("grpc", 0))
    ports = {"grpc": grpc_port} | {service.name: _free(former.get(service.name, 0)) for service in services}
    write_atomically(file, json.dumps(ports))
    return Layout(
        state=options.state,
        vo=_vo(options),
        server=SETTINGS.model_copy(update={"listen": f"127.0.0.1:{grpc_port}"}),
        http_listen={service.name: f"127.0.0.1:{ports[service.name]}" for service in services},
    )


def _required(port: int) -> int:
    try:
        reserved_socket(f"127.0.0.1:{port}").close()
    except OSError as error:
        raise ConfigError(f"The port {port} cannot be used ({error.strerror}); give another --port.") from error
    return port


def _free(wanted: int) -> int:
    """Return the wanted port if nobody has it, else a free one."""
    try:
        bound = reserved_socket(f"127.0.0.1:{wanted}")
    except OSError:
        bound = reserved_socket("127.0.0.1:0")
    with bound:
        return int(bound.getsockname()[1])


def _vo(options: Options) -> str:
    file = options.state / "vo"
    if not file.exists():
        write_atomically(file, options.vo or "local")
    vo = file.read_text()
    if options.vo and options.vo != vo:
        raise ConfigError(f"{options.state} belongs to the VO {vo}; give another --state for {options.vo}.")
    return vo


@asynccontextmanager
async def _token_file(issuer: DevelopmentIssuer, layout: Layout) -> AsyncIterator[None]:
    """Keep `<state>/token` fresh: a token of this user for everything."""
    file = layout.state / "token"
    subject = os.environ.get("USER") or f"uid{os.getuid()}"

    async def renew() -> None:
        while True:
            await asyncio.sleep(_TOKEN_RENEWAL.total_seconds())
            write_atomically(file, issuer.token(subject, expires_in=_TOKEN_LIFETIME), mode=0o600)

    write_atomically(file, issuer.token(subject, expires_in=_TOKEN_LIFETIME), mode=0o600)
    task = asyncio.create_task(renew())
    try:
        yield
    finally:
        task.cancel()


def _announce(installation: Installation, options: Options) -> None:
    """Tell people and programs that all is ready."""
    token_file = options.state / "token"
    facts = {"endpoint": installation.endpoint, "token_file": str(token_file), "http": dict(installation.http)}
    text = json.dumps(facts, indent=2) + "\n"
    write_atomically(options.state / "endpoint.json", text)
    if options.ready_file is not None:
        write_atomically(options.ready_file, text)
    sys.stdout.write(f"export KHOMAS_ENDPOINT={installation.endpoint}\nexport BEARER_TOKEN_FILE={token_file}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
