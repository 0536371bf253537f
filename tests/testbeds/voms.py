"""A certificate authority with a person and a host, and VOMS proxies for them without a VOMS server."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from tests.testbeds import install, packages

ORGANISATION = "Khomas Test"
VO = "testvo"
_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class VomsBed:
    """Certificates and the means to make proxies of them."""

    folder: Path
    # Trusted authorities, for X509_CERT_DIR.
    authorities: Path
    user_certificate: Path
    user_key: Path
    host_certificate: Path
    host_key: Path
    user: str
    host: str

    @property
    def environment(self) -> dict[str, str]:
        """What the tools of the grid need."""
        return {
            "X509_CERT_DIR": str(self.authorities),
            "X509_USER_CERT": str(self.user_certificate),
            "X509_USER_KEY": str(self.user_key),
        }

    def command(
        self, out: Path, hours: str = "12:00", fqans: Sequence[str] = (), attribute_hours: str = ""
    ) -> list[str]:
        """The command that makes a proxy; its attributes may end before it does. Hours as "12:00"."""
        shown = [word for fqan in fqans for word in ("-fqan", fqan)]
        return [
            "voms-proxy-fake", "-rfc", "-bits", "2048", "-voms", VO, *shown,
            "-hours", hours.partition(":")[0], "-vomslife", (attribute_hours or hours).partition(":")[0],
            "-hostcert", str(self.host_certificate), "-hostkey", str(self.host_key),
            "-cert", str(self.user_certificate), "-key", str(self.user_key),
            "-certdir", str(self.authorities), "-uri", "localhost:15000", "-out", str(out),
        ]  # fmt: skip

    def proxy(
        self, out: Path, hours: str = "12:00", fqans: Sequence[str] = (f"/{VO}",), attribute_hours: str = ""
    ) -> Path:
        """Make a proxy with these attributes."""
        run(self.command(out, hours, fqans, attribute_hours), self.environment)
        return out

    def plain_proxy(self, out: Path, hours: str = "12:00") -> Path:
        """Make a proxy without attributes."""
        argv = ["grid-proxy-init", "-q", "-rfc", "-bits", "2048", "-valid", hours, "-out", str(out)]
        run([*argv, "-cert", str(self.user_certificate), "-key", str(self.user_key)], self.environment)
        return out


def run(argv: Sequence[str], env: dict[str, str], stdin: bytes = b"") -> bytes:
    """Run a command; what it prints."""
    done = subprocess.run(
        argv, check=False, input=stdin, capture_output=True, env={**os.environ, **env}, timeout=_SECONDS
    )
    if done.returncode != 0:
        said = (done.stdout + done.stderr).decode("utf-8", "replace")
        raise RuntimeError(f"{argv[0]} ended with exit code {done.returncode}: {said}")
    return done.stdout


@contextmanager
def running(folder: Path, *, days: int = 30) -> Iterator[VomsBed]:
    """Make the authority and the certificates. Nothing runs: the attributes are signed by the tool."""
    install.debian(*packages.VOMS)
    folder.mkdir(parents=True, exist_ok=True)
    authorities = folder / "certificates"
    authorities.mkdir()
    authority = _Authority(days)
    authority.trusted_in(authorities)
    user = authority.issued(folder / "user", "Ada Robot")
    host = authority.issued(folder / "host", "localhost")
    names = [f"/O={ORGANISATION}/CN={name}" for name in ("Ada Robot", "localhost")]
    yield VomsBed(folder, authorities, *user, *host, *names)


class _Authority:
    """Signs certificates."""

    def __init__(self, days: int) -> None:
        self._days = days
        self._key = _new_key()
        self._name = _name("Authority")
        basic = x509.BasicConstraints(ca=True, path_length=None)
        builder = self._builder(self._name, self._key, 2 * days).add_extension(basic, critical=True)
        self._certificate = builder.sign(self._key, hashes.SHA256())

    def trusted_in(self, folder: Path) -> None:
        """Put the authority where the tools of the grid look for it."""
        pem = self._certificate.public_bytes(serialization.Encoding.PEM)
        given = folder / "authority.pem"
        given.write_bytes(pem)
        code = run(["openssl", "x509", "-noout", "-subject_hash", "-in", str(given)], {}).decode().strip()
        (folder / f"{code}.0").write_bytes(pem)
        (folder / f"{code}.signing_policy").write_text(
            f"access_id_CA X509 '/O={ORGANISATION}/CN=Authority'\npos_rights globus CA:sign\n"
            f"cond_subjects globus '\"/O={ORGANISATION}/*\"'\n"
        )

    def issued(self, stem: Path, name: str) -> tuple[Path, Path]:
        """A certificate and its key."""
        key = _new_key()
        builder = self._builder(_name(name), key, self._days)
        names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(IPv4Address("127.0.0.1"))])
        constraints = x509.BasicConstraints(ca=False, path_length=None)
        builder = builder.add_extension(names, critical=False).add_extension(constraints, critical=True)
        files = stem.with_suffix(".pem"), stem.with_suffix(".key")
        files[0].write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        files[1].touch(mode=0o600)
        files[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.TraditionalOpenSSL,
                serialization.NoEncryption(),
            )
        )
        return files

    def _builder(self, subject: x509.Name, key: rsa.RSAPrivateKey, days: int) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )


def _new_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def _name(common: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANISATION), x509.NameAttribute(NameOID.COMMON_NAME, common)]
    )
