"""X.509 and VOMS proxies in files, renewed by MyProxy where one holds a longer credential."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography import x509
from cryptography.x509.oid import NameOID
from pydantic import BaseModel, ConfigDict

from khomas.kit.credentials.commands import run
from khomas.kit.credentials.der import NotDer
from khomas.kit.credentials.interface import Credential, CredentialPlugin, RenewalFailed
from khomas.kit.credentials.options import Options
from khomas.kit.credentials.secret_file import SecretFile, Unreadable, put_in_place
from khomas.kit.credentials.voms import Attributes, attributes

# RFC 3820 proxyCertInfo.
_PROXY = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.14")


class MyProxyOptions(BaseModel):
    """A MyProxy server that holds a longer credential."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    server: str
    port: int = 7512
    username: str
    # Lifetime of what is fetched.
    hours: int = 12
    # File with the passphrase, mode 600. Empty = the proxy that is to be renewed is shown, and we authenticate with
    # what `env` names as X509_USER_CERT and X509_USER_KEY, which the server must know as a renewer.
    passphrase_file: Path | None = None
    # The command, with its folder where that is not on the PATH.
    command: str = "myproxy-logon"
    # Environment of the command: X509_CERT_DIR, MYPROXY_SERVER_DN.
    env: dict[str, str] = {}


class ProxyOptions(Options):
    """Where the proxy is."""

    # Empty = $X509_USER_PROXY, /tmp/x509up_u$UID.
    file: Path | None = None
    myproxy: MyProxyOptions | None = None


class ProxyFile:
    """A proxy: a short certificate, its key, and the chain up to a person or a robot."""

    kind = "x509"

    def __init__(self, name: str, options: ProxyOptions, environment: Mapping[str, str] = os.environ) -> None:
        self.name = name
        self._options = options
        # The usual path; who owns the file is checked.
        usual = environment.get("X509_USER_PROXY") or f"/tmp/x509up_u{os.geteuid()}"  # noqa: S108
        self._path = options.file or Path(usual)
        remedy = options.told or _logon(options.myproxy, self._path) or f"voms-proxy-init -rfc -out {self._path}"
        self._file = SecretFile(self._read, remedy, group_readable=options.group_readable)

    @property
    def renewable(self) -> bool:
        """Whether a MyProxy or a command renews it."""
        return bool(self._options.myproxy or self._options.renew_command)

    def status(self) -> Credential:
        """Read whom it is for, its FQANs, and when the first of its certificates and attributes ends."""
        return self._file.look(self._path)

    def files(self) -> Mapping[str, Path]:
        """The file, as `proxy`."""
        return {"proxy": self._path}

    def environment(self) -> Mapping[str, str]:
        """X509_USER_PROXY."""
        return {"X509_USER_PROXY": str(self._path)}

    async def renew(self) -> None:
        """Run the command of the settings, or fetch a new proxy from MyProxy."""
        if self._options.renew_command:
            await self._options.run_renew_command()
        elif self._options.myproxy is not None:
            await self._fetch(self._options.myproxy)
        else:
            raise RenewalFailed("neither myproxy nor renew_command is set")

    async def _fetch(self, myproxy: MyProxyOptions) -> None:
        with TemporaryDirectory(prefix=".renewal-", dir=self._path.parent) as folder:
            made = Path(folder, "proxy")
            passphrase = _passphrase(myproxy.passphrase_file)
            argv = _command(myproxy, made, None if passphrase else self._path)
            await run(argv, stdin=passphrase, env=myproxy.env)
            await asyncio.to_thread(self._take, made, myproxy.server)

    def _take(self, made: Path, server: str) -> None:
        try:
            fresh = self._read(made.read_bytes(), made.stat())
        except (OSError, Unreadable) as error:
            raise RenewalFailed(f"what {server} gave is no proxy") from error
        known = self.status()
        if known.present and known.expires and fresh.expires and fresh.expires <= known.expires:
            raise RenewalFailed(f"what {server} gave lasts no longer than what we have")
        put_in_place(made, self._path)

    def _read(self, content: bytes, found: os.stat_result) -> Credential:
        if b"PRIVATE KEY-----" not in content:
            raise Unreadable("it has no private key")
        try:
            chain = x509.load_pem_x509_certificates(content)
            said = [one for certificate in chain for one in attributes(certificate)]
        except NotDer as error:
            raise Unreadable(str(error)) from error
        except ValueError as error:
            raise Unreadable("it has no certificate that can be read") from error
        begins = [one.not_valid_before_utc for one in chain] + [one.not_before for one in said]
        return Credential(
            present=True,
            subject=_identity(chain),
            not_before=max(begins),
            expires=_end(chain, said),
            renews=self.renewable or self._options.kept_fresh,
            can=tuple(fqan for one in said for fqan in one.fqans),
        )


def _end(chain: Sequence[x509.Certificate], said: Sequence[Attributes]) -> datetime:
    return min([one.not_valid_after_utc for one in chain] + [one.expires for one in said])


def _identity(chain: Sequence[x509.Certificate]) -> str:
    """The subject of the certificate that the proxies are of, as grid tools write it."""
    owner = next((one for one in chain if not _is_proxy(one)), chain[-1])
    return "".join(f"/{_short(part.oid, part.rfc4514_attribute_name)}={part.value!s}" for part in owner.subject)


def _short(oid: x509.ObjectIdentifier, name: str) -> str:
    return "emailAddress" if oid == NameOID.EMAIL_ADDRESS else name


def _is_proxy(certificate: x509.Certificate) -> bool:
    return any(extension.oid == _PROXY for extension in certificate.extensions)


def _passphrase(file: Path | None) -> bytes:
    if file is None:
        return b""
    try:
        if file.stat().st_mode & 0o077:
            raise RenewalFailed(f"{file} can be used by others; chmod 600 {file}")
        return file.read_bytes().rstrip(b"\r\n") + b"\n"
    except OSError as error:
        raise RenewalFailed(f"{file} cannot be read: {error.strerror}") from error


def _command(myproxy: MyProxyOptions, out: Path, shown: Path | None) -> list[str]:
    argv = [myproxy.command, "-s", myproxy.server, "-p", str(myproxy.port), "-l", myproxy.username]
    argv += ["-t", str(myproxy.hours), "-o", str(out)]
    return [*argv, "-n", "-a", str(shown)] if shown else [*argv, "-S"]


def _logon(myproxy: MyProxyOptions | None, out: Path) -> str:
    if myproxy is None:
        return ""
    where = f"-s {myproxy.server} -p {myproxy.port} -l {myproxy.username}"
    return f"{myproxy.command} {where} -t {myproxy.hours} -o {out}"


plugin = CredentialPlugin("x509", ProxyOptions, ProxyFile)
