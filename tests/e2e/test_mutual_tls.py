"""Two services and the client where everybody shows a certificate."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID as Usage
from cryptography.x509.oid import NameOID

from khomas.client import AsyncClient, KhomasError
from khomas.client.pairs import Pair
from khomas.kit.auth.issuer import DevelopmentIssuer
from tests.e2e.apart import Apart

AREAS = ("catalog", "storage")


@dataclass(frozen=True)
class Authority:
    """Signs certificates, for 127.0.0.1 where they are of servers."""

    key: ec.EllipticCurvePrivateKey
    certificate: bytes

    @classmethod
    def made(cls) -> "Authority":
        key = ec.generate_private_key(ec.SECP256R1())
        return cls(key, _signed("authority", key, key, x509.BasicConstraints(ca=True, path_length=0)))

    def sign(self, folder: Path, *uses: x509.ObjectIdentifier) -> Path:
        """Write what the Secrets of the manifests hold: tls.crt, tls.key, ca.crt."""
        folder.mkdir()
        key = ec.generate_private_key(ec.SECP256R1())
        address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
        (folder / "tls.crt").write_bytes(_signed(folder.name, key, self.key, x509.ExtendedKeyUsage(uses), address))
        pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
        (folder / "tls.key").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
        (folder / "ca.crt").write_bytes(self.certificate)
        return folder


def _signed(
    name: str, key: ec.EllipticCurvePrivateKey, by: ec.EllipticCurvePrivateKey, *extensions: x509.ExtensionType
) -> bytes:
    begin = datetime.now(UTC) - timedelta(hours=1)
    issuer, subject = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, of)]) for of in ("authority", name))
    builder = x509.CertificateBuilder(
        issuer, subject, key.public_key(), x509.random_serial_number(), begin, begin + timedelta(days=1)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
    return builder.sign(by, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.made()


@pytest.fixture(scope="module")
def with_one(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apart]:
    """Services that show what they serve with."""
    folder = tmp_path_factory.mktemp("one")
    tls = authority.sign(folder / "tls", Usage.SERVER_AUTH, Usage.CLIENT_AUTH)
    apart = Apart(folder, AREAS, tls=tls)
    apart.start()
    yield apart
    apart.stop()


@pytest.fixture(scope="module")
def with_two(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apart]:
    """Services that show another certificate than they serve with, which is good for servers only."""
    folder = tmp_path_factory.mktemp("two")
    shown = authority.sign(folder / "shown", Usage.CLIENT_AUTH)
    settings = {f"KHOMAS_{area.upper()}_PEERS_CERTIFICATE": str(shown / "tls.crt") for area in AREAS}
    settings |= {f"KHOMAS_{area.upper()}_PEERS_KEY": str(shown / "tls.key") for area in AREAS}
    apart = Apart(folder, AREAS, settings, tls=authority.sign(folder / "tls", Usage.SERVER_AUTH))
    apart.start()
    yield apart
    apart.stop()


@pytest.fixture
def alice(authority: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Give the client a certificate and whom to believe."""
    own = authority.sign(tmp_path / "alice", Usage.CLIENT_AUTH)
    monkeypatch.setenv("KHOMAS_CA", str(own / "ca.crt"))
    monkeypatch.setenv("KHOMAS_CERT", str(own / "tls.crt"))
    monkeypatch.setenv("KHOMAS_KEY", str(own / "tls.key"))
    return own


def client(khomas: Apart, area: str) -> AsyncClient:
    return AsyncClient(khomas.address(area), DevelopmentIssuer.open(khomas.folder / "state", "local").token("alice"))


async def committed(khomas: Apart, folder: Path) -> int:
    """Put a file, of which the storage tells the catalogue, and return the size that is known there."""
    (folder / "run.fits").write_bytes(b"events")
    async with client(khomas, "storage") as storage, client(khomas, "catalog") as catalog:
        await storage.files.put([Pair(folder / "run.fits", "/local/run.fits")])
        (file,) = await catalog.files.stat(["/local/run.fits"])
    return int(file.size_bytes)


@pytest.mark.usefixtures("alice")
async def test_services_show_each_other_what_they_serve_with(with_one: Apart, tmp_path: Path) -> None:
    assert await committed(with_one, tmp_path) == len(b"events")


@pytest.mark.usefixtures("alice")
async def test_services_show_each_other_another_certificate_if_they_have_one(with_two: Apart, tmp_path: Path) -> None:
    assert await committed(with_two, tmp_path) == len(b"events")


async def test_client_without_a_certificate_is_not_let_in(
    with_one: Apart, alice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KHOMAS_CERT")
    monkeypatch.delenv("KHOMAS_KEY")
    async with client(with_one, "catalog") as catalog:
        with pytest.raises(KhomasError, match="No answer"):
            await catalog.files.stat(["/local/run.fits"])


async def test_client_says_what_its_certificate_lacks(
    with_one: Apart, alice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KHOMAS_KEY")
    async with client(with_one, "catalog") as catalog:
        with pytest.raises(KhomasError, match="KHOMAS_KEY"):
            await catalog.files.stat(["/local/run.fits"])
