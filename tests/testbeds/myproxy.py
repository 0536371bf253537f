"""A MyProxy server on loopback that keeps the credential of the person of the VOMS bed."""

import os
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.testbeds import install, packages, voms

PASSPHRASE = "correct horse battery staple"
USERNAME = "ada"
RENEWABLE = "ada-renewable"
_SECONDS = 20.0


class Door:
    """What inetd does: a server a connection. By itself in the foreground the server ends after one request."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._argv: Sequence[str] = ()
        self._env: Mapping[str, str] = {}

    def __enter__(self) -> "Door":
        return self

    def __exit__(self, *error: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        if self._thread.is_alive():
            self._thread.join(_SECONDS)

    def open(self, argv: Sequence[str], env: Mapping[str, str]) -> int:
        """Begin to serve; the port."""
        self._argv, self._env = argv, {**os.environ, **env}
        self._thread.start()
        port: int = self._listening.getsockname()[1]
        return port

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection, self._log.open("ab") as log:
                subprocess.run(
                    self._argv,
                    stdin=connection.fileno(),
                    stdout=connection.fileno(),
                    stderr=log,
                    env=self._env,
                    timeout=_SECONDS,
                    check=False,
                )


@dataclass(frozen=True, slots=True)
class MyProxyBed:
    """A server, and what a client needs."""

    voms: voms.VomsBed
    host: str
    port: int
    # Holds PASSPHRASE, mode 600.
    passphrase: Path

    @property
    def environment(self) -> dict[str, str]:
        """What the tools need."""
        return {"X509_CERT_DIR": str(self.voms.authorities), "MYPROXY_SERVER_DN": self.voms.host}

    @property
    def renewer(self) -> dict[str, str]:
        """What the tools need to renew as the host, which must not be the one whose credential it is."""
        files = {"X509_USER_CERT": str(self.voms.host_certificate), "X509_USER_KEY": str(self.voms.host_key)}
        return {**self.environment, **files}

    def store(self, *options: str, username: str, stdin: bytes = b"") -> None:
        """Let the server keep a credential."""
        argv = ["myproxy-init", "-s", self.host, "-p", str(self.port), "-l", username, *options]
        voms.run([*argv, "-c", "168"], {**self.voms.environment, **self.environment}, stdin)


@contextmanager
def running(folder: Path) -> Iterator[MyProxyBed]:
    """Start the server and let it keep two credentials: one for a passphrase, one for who shows a proxy of it."""
    install.debian(*packages.MYPROXY)
    with voms.running(folder / "voms") as grid, Door(folder / "myproxy-server.log") as door:
        bed = _started(folder, grid, door)
        bed.store("-S", "-a", username=USERNAME, stdin=PASSPHRASE.encode() + b"\n")
        bed.store("-n", "-x", "-R", grid.host, username=RENEWABLE)
        yield bed


def _started(folder: Path, grid: voms.VomsBed, door: Door) -> MyProxyBed:
    storage = folder / "storage"
    storage.mkdir(mode=0o700)
    config = folder / "myproxy-server.config"
    config.write_text(
        'accepted_credentials "*"\nauthorized_retrievers "*"\ndefault_retrievers "*"\n'
        'authorized_renewers "*"\ndefault_renewers "none"\n'
    )
    server = ["myproxy-server", "-c", str(config), "-s", str(storage)]
    environment = {
        "X509_CERT_DIR": str(grid.authorities),
        "X509_USER_CERT": str(grid.host_certificate),
        "X509_USER_KEY": str(grid.host_key),
    }
    port = door.open(server, environment)
    passphrase = folder / "passphrase"
    passphrase.touch(mode=0o600)
    passphrase.write_text(f"{PASSPHRASE}\n")
    return MyProxyBed(grid, "localhost", port, passphrase)
