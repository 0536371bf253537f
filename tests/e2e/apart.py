"""Services in processes of their own, as in production, that can be killed and started again one by one."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import grpc

from khomas.kit.auth.issuer import DevelopmentIssuer
from khomas.kit.auth.tokens import IssuedTokens
from khomas.kit.channel import ServiceChannel, open_channel
from tests.testbeds.processes import free_ports, until

_PATIENCE = 120
_PAUSE = 0.3
_AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


@dataclass(slots=True)
class Apart:
    """Some services on loopback, with a database each and a state folder in common."""

    folder: Path
    areas: Sequence[str]
    settings: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    ports: Mapping[str, int] = field(default_factory=dict)
    processes: "dict[str, subprocess.Popen[bytes]]" = field(default_factory=dict)
    # Holds tls.crt, tls.key and ca.crt: they serve with these, and ask whoever calls for a certificate.
    tls: Path | None = None

    def start(self) -> None:
        """Bring the databases up to date and start all."""
        names = [*self.areas, *(f"{area} http" for area in self.areas)]
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        (self.folder / "state").mkdir()
        # One of them would make it, both at the same time.
        DevelopmentIssuer.open(self.folder / "state", "local")
        for area in self.areas:
            subprocess.run(self._command(area, "migrate"), env=self._environment(area), check=True, timeout=_PATIENCE)
            self.launch(area)
        for area in self.areas:
            self.until(partial(self._listens, area), f"{area} did not listen")

    def _listens(self, area: str) -> bool:
        self.check()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.ports[area])) == 0

    def launch(self, area: str) -> None:
        """Start one."""
        with (self.folder / f"{area}.log").open("ab") as log:
            self.processes[area] = subprocess.Popen(
                self._command(area, "serve"), env=self._environment(area), stdout=log, stderr=log
            )

    def address(self, area: str) -> str:
        """Where one is. Plain addresses on loopback are spoken to without TLS."""
        return f"{'ipv4:' if self.tls else ''}127.0.0.1:{self.ports[area]}"

    def kill(self, area: str) -> None:
        """End one as a power cut does to a process."""
        self.processes[area].kill()
        self.processes[area].wait(_PATIENCE)

    def stop(self) -> None:
        """End all gracefully."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.wait(_PATIENCE)

    def check(self) -> None:
        """Fail if one has ended by itself."""
        for area, process in self.processes.items():
            assert process.poll() is None, (self.folder / f"{area}.log").read_text()[-3000:]

    def until(self, check: Callable[[], object], what: str) -> None:
        """Wait."""
        until(check, _PATIENCE, what)

    @asynccontextmanager
    async def channel(self, area: str) -> AsyncIterator[grpc.aio.Channel]:
        """Speak to one, with a token for everything."""
        tokens = IssuedTokens(DevelopmentIssuer.open(self.folder / "state", "local"), "tester")
        async with open_channel(f"127.0.0.1:{self.ports[area]}", plaintext=True) as channel:
            yield ServiceChannel(channel, area, tokens)

    def _command(self, area: str, what: str) -> list[str]:
        return [sys.executable, "-m", f"khomas.{area}", what]

    def _environment(self, area: str) -> dict[str, str]:
        peers = ", ".join(f'"{other}": "{self.address(other)}"' for other in self.areas if other != area)
        values = {
            "PROFILE": "development",
            "STATE": str(self.folder / "state"),
            "DATABASE_URL": f"sqlite+aiosqlite:///{self.folder}/{area}.sqlite",
            "PEERS": f"{{{peers}}}",
            "SERVER__LISTEN": f"127.0.0.1:{self.ports[area]}",
            "SERVER__DRAIN_PAUSE": "PT0S",
            "HTTP__LISTEN": f"127.0.0.1:{self.ports[f'{area} http']}",
        }
        if self.tls is not None:
            values |= {
                "SERVER__TLS__CERTIFICATE": str(self.tls / "tls.crt"),
                "SERVER__TLS__KEY": str(self.tls / "tls.key"),
                "SERVER__TLS__CLIENT_CA": str(self.tls / "ca.crt"),
                "PEERS_CA": str(self.tls / "ca.crt"),
            }
        ours = {f"KHOMAS_{area.upper()}_{key}": value for key, value in values.items()}
        return {**os.environ, **ours, **self.settings}


async def persistently(method: Callable[[Any], Any], request: Any) -> Any:
    """Make a call again while the service is away; the request has a request_id where it needs one."""
    async with asyncio.timeout(_PATIENCE):
        while True:
            try:
                return await method(request)
            except grpc.aio.AioRpcError as error:
                if error.code() not in _AGAIN:
                    raise
                await asyncio.sleep(_PAUSE)
