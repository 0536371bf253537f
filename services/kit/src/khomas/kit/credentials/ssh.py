"""SSH keys: in a file or held by an agent, with the certificate of a key where there is one."""

import base64
import hashlib
import os
import shlex
import socket
import struct
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from pydantic import model_validator

from khomas.kit.credentials.interface import Credential, CredentialPlugin, RenewalFailed
from khomas.kit.credentials.options import Options
from khomas.kit.credentials.secret_file import SecretFile, Unreadable

_MAGIC = b"openssh-key-v1\0"
_FOREVER = 2**64 - 1
# https://datatracker.ietf.org/doc/html/draft-ietf-sshm-ssh-agent
_REQUEST, _ANSWER = 11, 12
_AGENT_SECONDS = 5.0


class SshOptions(Options):
    """Which key."""

    # Private key, mode 600, without a passphrase: nobody is there to type one.
    key: Path | None = None
    # Empty = the key's path with -cert.pub, where that is a file.
    certificate: Path | None = None
    # Socket of an agent that holds the key.
    agent: Path | None = None
    # Which of the agent's keys, as `ssh-add -l` shows it ("SHA256:..."). Empty = its first.
    fingerprint: str = ""

    @model_validator(mode="after")
    def _one_place(self) -> "SshOptions":
        if (self.key is None) == (self.agent is None):
            raise ValueError("give either key or agent")
        return self


class SshKey:
    """A key; it lasts for ever unless its certificate does not."""

    kind = "ssh"

    def __init__(self, name: str, options: SshOptions) -> None:
        self.name = name
        self._options = options
        remedy = options.told or self._usual_remedy()
        self._file = SecretFile(self._read, remedy, group_readable=options.group_readable)
        self._remedy = remedy

    @property
    def renewable(self) -> bool:
        """Whether there is a command for its certificate."""
        return bool(self._options.renew_command)

    def status(self) -> Credential:
        """Read fingerprint, and times and principals of the certificate."""
        if self._options.agent is not None:
            known = self._held(self._options.agent)
        else:
            known = self._file.look(self._options.key)
            if known.present and (certificate := self._certificate()) is not None:
                known = self._certified(known, certificate)
        return replace(known, renews=self.renewable or self._options.kept_fresh)

    def files(self) -> Mapping[str, Path]:
        """The `key` with its `certificate`, or the socket of the `agent`."""
        found = {"key": self._options.key, "certificate": self._certificate(), "agent": self._options.agent}
        return {name: path for name, path in found.items() if path is not None}

    def environment(self) -> Mapping[str, str]:
        """SSH_AUTH_SOCK; commands are told about a key file by an argument (`ssh -i`)."""
        return {} if self._options.agent is None else {"SSH_AUTH_SOCK": str(self._options.agent)}

    async def renew(self) -> None:
        """Run the command that the settings name."""
        if not self.renewable:
            raise RenewalFailed("no renew_command is set")
        await self._options.run_renew_command()

    def _usual_remedy(self) -> str:
        if self._options.agent is not None:
            return f"SSH_AUTH_SOCK={shlex.quote(str(self._options.agent))} ssh-add"
        return f"ssh-keygen -t ed25519 -N '' -f {shlex.quote(str(self._options.key))}"

    def _certificate(self) -> Path | None:
        if self._options.certificate is not None or self._options.key is None:
            return self._options.certificate
        usual = self._options.key.with_name(f"{self._options.key.name}-cert.pub")
        return usual if usual.exists() else None

    def _certified(self, known: Credential, path: Path) -> Credential:
        try:
            return _limited(known, path.read_bytes())
        except OSError as error:
            return replace(known, present=False, trouble=f"{path} cannot be read: {error.strerror}")
        except Unreadable as error:
            return replace(known, present=False, trouble=f"{path}: {error}")

    def _read(self, content: bytes, found: os.stat_result) -> Credential:
        if b"BEGIN OPENSSH PRIVATE KEY" in content:
            return Credential(present=True, subject=_fingerprint(_public_half(content)))
        try:
            key = serialization.load_pem_private_key(content, None)
            public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        except TypeError as error:
            raise Unreadable("it has a passphrase; use an agent, or take it off: ssh-keygen -p") from error
        except (ValueError, UnsupportedAlgorithm) as error:
            raise Unreadable("it is no private key") from error
        return Credential(present=True, subject=_fingerprint(base64.b64decode(public.split()[1])))

    def _held(self, agent: Path) -> Credential:
        try:
            keys = _keys_of(agent)
        except (OSError, ValueError, struct.error) as error:
            return Credential(False, trouble=f"the agent at {agent} does not answer: {error}", remedy=self._remedy)
        wanted = [blob for blob in keys if self._options.fingerprint in ("", _key_fingerprint(blob))]
        if not wanted:
            return Credential(False, trouble=f"the agent at {agent} does not hold the key", remedy=self._remedy)
        # A key with its certificate stands there twice; the certificate says more.
        best = max(wanted, key=_is_certificate)
        known = Credential(True, _key_fingerprint(best), remedy=self._remedy)
        try:
            return _limited(known, _kind(best) + b" " + base64.b64encode(best)) if _is_certificate(best) else known
        except Unreadable as error:
            return replace(known, present=False, trouble=f"the certificate that the agent holds: {error}")


def _limited(known: Credential, certificate: bytes) -> Credential:
    """The key with the limits of its certificate."""
    try:
        found = serialization.load_ssh_public_identity(certificate)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Unreadable("it is no certificate that can be read") from error
    if not isinstance(found, serialization.SSHCertificate):
        raise Unreadable("it is a key, not a certificate")
    if known.subject != _fingerprint(_blob(found)):
        raise Unreadable("it is the certificate of another key")
    return replace(
        known,
        subject=f"{found.key_id.decode('utf-8', 'replace')} ({known.subject})",
        not_before=datetime.fromtimestamp(found.valid_after, UTC) if found.valid_after else None,
        expires=datetime.fromtimestamp(found.valid_before, UTC) if found.valid_before != _FOREVER else None,
        can=tuple(one.decode("utf-8", "replace") for one in found.valid_principals),
    )


def _blob(certificate: serialization.SSHCertificate) -> bytes:
    public = certificate.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return base64.b64decode(public.split()[1])


def _public_half(content: bytes) -> bytes:
    """The public key in a private one of OpenSSH; it stands there in the clear."""
    try:
        body = base64.b64decode(b"".join(line for line in content.splitlines() if line[:5] != b"-----"))
        if not body.startswith(_MAGIC):
            raise Unreadable("it is no private key")
        cipher, rest = _string(body[len(_MAGIC) :])
        if cipher != b"none":
            raise Unreadable("it has a passphrase; use an agent, or take it off: ssh-keygen -p")
        _, rest = _string(rest)
        _, rest = _string(rest)
        return _string(rest[4:])[0]
    except (ValueError, struct.error) as error:
        raise Unreadable("it is no private key") from error


def _keys_of(agent: Path) -> list[bytes]:
    """The public keys that an agent holds."""
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(_AGENT_SECONDS)
        link.connect(str(agent))
        link.sendall(struct.pack(">IB", 1, _REQUEST))
        with link.makefile("rb") as stream:
            size = struct.unpack(">I", stream.read(4))[0]
            answer = stream.read(min(size, 1 << 20))
    if answer[0] != _ANSWER:
        raise ValueError("it refused to list its keys")
    rest, keys = answer[5:], []
    while rest:
        blob, rest = _string(rest)
        _, rest = _string(rest)
        keys.append(blob)
    return keys


def _string(data: bytes) -> tuple[bytes, bytes]:
    size = struct.unpack(">I", data[:4])[0]
    if len(data) < 4 + size:
        raise ValueError("it is cut off")
    return data[4 : 4 + size], data[4 + size :]


def _kind(blob: bytes) -> bytes:
    return _string(blob)[0]


def _is_certificate(blob: bytes) -> bool:
    return b"-cert-v01@" in _kind(blob)


def _key_fingerprint(blob: bytes) -> str:
    """Of the key, also where the blob is its certificate."""
    if not _is_certificate(blob):
        return _fingerprint(blob)
    found = serialization.load_ssh_public_identity(_kind(blob) + b" " + base64.b64encode(blob))
    return _fingerprint(_blob(found)) if isinstance(found, serialization.SSHCertificate) else ""


def _fingerprint(blob: bytes) -> str:
    """As ssh-keygen writes it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


plugin = CredentialPlugin("ssh", SshOptions, SshKey)
