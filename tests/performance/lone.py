"""One service in a process of its own, as in production: TLS, token, its own database."""

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from types import MappingProxyType

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from khomas.kit.auth.issuer import DevelopmentIssuer
from khomas.kit.auth.tokens import IssuedTokens
from khomas.kit.channel import ServiceChannel, open_channel

_AREAS = ("catalog", "storage", "scheduler", "bookkeeping", "archive")
_PATIENCE = 60


@dataclass(frozen=True, slots=True)
class Lone:
    """A running service and a channel to it that carries a token for everything."""

    process: "subprocess.Popen[bytes]"
    channel: grpc.aio.Channel

    def cpu_seconds(self) -> float:
        """Return what it has used."""
        return cpu_seconds(self.process.pid)

    def resident_bytes(self) -> int:
        """Return its resident memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
        return int(line.split()[1]) * 1024


def cpu_seconds(pid: int) -> float:
    """Return what all threads of a process have used, to the nanosecond."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


@asynccontextmanager
async def lone(
    area: str, url: str, *, tls: bool = True, settings: Mapping[str, str] = MappingProxyType({})
) -> AsyncIterator[Lone]:
    """Migrate the database and serve until the block ends; the service's peers do not exist."""
    with tempfile.TemporaryDirectory(prefix="khomas-") as name:
        folder, port = Path(name), _free_port()
        certificate = _certify(folder) if tls else None
        values = {**_settings(area, url, folder, port, certificate), **settings}
        environment = {**os.environ, **{f"KHOMAS_{area.upper()}_{key}": value for key, value in values.items()}}
        command = [sys.executable, "-m", f"khomas.{area}"]
        await asyncio.to_thread(subprocess.run, [*command, "migrate"], env=environment, check=True)
        process = _started([*command, "serve"], environment, folder / "log")
        try:
            async with open_channel(f"127.0.0.1:{port}", certificate, plaintext=certificate is None) as channel:
                await _ready(channel, process, folder / "log")
                tokens = IssuedTokens(DevelopmentIssuer.open(folder, "local"), "tester")
                yield Lone(process, ServiceChannel(channel, area, tokens))
        finally:
            process.terminate()
            await asyncio.to_thread(process.wait, _PATIENCE)


def _started(command: Sequence[str], environment: Mapping[str, str], log: Path) -> "subprocess.Popen[bytes]":
    with log.open("wb") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=file)


async def _ready(channel: grpc.aio.Channel, process: "subprocess.Popen[bytes]", log: Path) -> None:
    try:
        await asyncio.wait_for(channel.channel_ready(), _PATIENCE)
    except TimeoutError:
        said = (await asyncio.to_thread(log.read_text))[-2000:]
        raise RuntimeError(f"the service does not answer ({process.poll()}): {said}") from None


def _settings(area: str, url: str, folder: Path, port: int, certificate: Path | None) -> dict[str, str]:
    peers = ", ".join(f'"{other}": "127.0.0.1:1"' for other in _AREAS if other != area)
    values = {
        "PROFILE": "development",
        "STATE": str(folder),
        "DATABASE_URL": url,
        "PEERS": f"{{{peers}}}",
        "SERVER__LISTEN": f"127.0.0.1:{port}",
        "SERVER__DRAIN_PAUSE": "PT0S",
    }
    if certificate is not None:
        values |= {"SERVER__TLS__CERTIFICATE": str(certificate), "SERVER__TLS__KEY": str(folder / "key.pem")}
    return values


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _certify(folder: Path) -> Path:
    """Write a key and a certificate for the loopback address that signs itself."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "khomas")])
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    (folder / "certificate.pem").write_bytes(signed.public_bytes(pem))
    return folder / "certificate.pem"
