"""How to log in: whom to believe, and what lets in."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import asyncssh

from khomas.kit.credentials import CredentialProvider
from khomas.storage.protocols.interface import Problem, ProtocolFault
from khomas.storage.protocols.sftp.settings import Place, SftpSettings

# AES-GCM is done by the processor, ChaCha20 is not: twice the bytes for each second of CPU.
_CIPHERS: Final = [
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "aes128-ctr",
    "aes256-ctr",
    "chacha20-poly1305@openssh.com",
]
_KEEPALIVE_SECONDS: Final = 15
_KNOWN_HOSTS: Final = Path("~/.ssh/known_hosts")


async def connected(
    place: Place, settings: SftpSettings, credential: CredentialProvider | None
) -> asyncssh.SSHClientConnection:
    """Log in; raise UNREACHABLE, CREDENTIAL or CONFIGURATION with what to do."""
    known_hosts = settings.known_hosts or _KNOWN_HOSTS
    trusted = await asyncio.to_thread(_trusted, known_hosts)
    lets_in = await asyncio.to_thread(_lets_in, settings, credential)
    try:
        async with asyncio.timeout(settings.connect_seconds):
            return await asyncssh.connect(
                place.host,
                place.port,
                username=place.user or (),
                # What is set for people on this machine is not for us.
                config=None,
                known_hosts=trusted,
                encryption_algs=_CIPHERS,
                compression_algs=None,
                keepalive_interval=_KEEPALIVE_SECONDS,
                **lets_in,
            )
    except asyncssh.HostKeyNotVerifiable as error:
        message = (
            f"{error}. Compare the key that `ssh-keyscan -p {place.port} {place.host}` prints with what the operator "
            f"of the server says, then add it to {known_hosts}"
        )
        raise ProtocolFault(Problem.CONFIGURATION, message) from error
    except asyncssh.PermissionDenied as error:
        raise ProtocolFault(Problem.CREDENTIAL, f"{place} does not let us in: {error}") from error
    except (asyncssh.KeyExchangeFailed, asyncssh.ProtocolNotSupported, asyncssh.IllegalUserName) as error:
        raise ProtocolFault(Problem.CONFIGURATION, f"{place}: {error}") from error
    except (asyncssh.Error, OSError) as error:
        words = str(error) or f"no answer in {settings.connect_seconds:g} s"
        raise ProtocolFault(Problem.UNREACHABLE, f"{place}: {words}") from error


def _trusted(known_hosts: Path) -> asyncssh.SSHKnownHosts:
    try:
        return asyncssh.read_known_hosts(str(known_hosts.expanduser()))
    except (OSError, ValueError) as error:
        message = f"{known_hosts}, which says what servers are believed, cannot be read: {error}"
        raise ProtocolFault(Problem.CONFIGURATION, message) from error


def _lets_in(settings: SftpSettings, credential: CredentialProvider | None) -> Mapping[str, Any]:
    """Return arguments of the library; raise CREDENTIAL."""
    files = _files(credential) if credential is not None else {"key": settings.key} if settings.key else None
    if files is None:
        return {}
    if (agent := files.get("agent")) is not None:
        return {"agent_path": str(agent)}
    key, certificate = files["key"], files.get("certificate")
    try:
        # Both are tried: the certificate first, then the key alone.
        pairs = asyncssh.load_keypairs([str(key)], certlist=[str(certificate)] if certificate else [])
    except (OSError, ValueError) as error:
        raise ProtocolFault(Problem.CREDENTIAL, f"the key {key} cannot be used: {error}") from error
    return {"client_keys": pairs, "agent_path": None}


def _files(credential: CredentialProvider) -> Mapping[str, Path]:
    known = credential.status()
    if not known.usable(datetime.now(UTC)):
        trouble = known.trouble or "it is not valid now"
        raise ProtocolFault(Problem.CREDENTIAL, f"credential {credential.name}: {trouble}. {known.remedy}".rstrip())
    files = credential.files()
    if credential.kind != "ssh" or not files.keys() & {"key", "agent"}:
        message = f"credential {credential.name} is of kind {credential.kind}, and sftp needs one of kind ssh"
        raise ProtocolFault(Problem.CONFIGURATION, message)
    return files
