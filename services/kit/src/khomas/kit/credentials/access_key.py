"""Access keys of object stores, in a file of the form that the tools of AWS have."""

import configparser
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from khomas.kit.credentials.interface import Credential, CredentialPlugin, RenewalFailed
from khomas.kit.credentials.options import Options
from khomas.kit.credentials.secret_file import SecretFile, Unreadable

# What tools that write temporary keys call their end.
_ENDS: Final = ("aws_expiration", "expiration", "x_security_token_expires")


@dataclass(frozen=True, slots=True)
class Keys:
    """What lets in."""

    access_key: str
    secret_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)
    expires: datetime | None = None


def keys_in(text: str, profile: str) -> Keys:
    """Return the keys of a profile; ValueError says what is missing and repeats nothing."""
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(text)
    except configparser.Error:
        raise ValueError("it is no file of access keys") from None
    if not parser.has_section(profile):
        raise ValueError(f"it has no profile [{profile}]")
    values = parser[profile]
    access, secret = values.get("aws_access_key_id", ""), values.get("aws_secret_access_key", "")
    if not access or not secret:
        raise ValueError(f"[{profile}] needs aws_access_key_id and aws_secret_access_key")
    end = next((values[name] for name in _ENDS if name in values), "")
    return Keys(access, secret, values.get("aws_session_token") or None, _moment(end) if end else None)


def _moment(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("its end is no time") from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


class AccessKeyOptions(Options):
    """Where the keys are."""

    file: Path
    profile: str = "default"


class AccessKey:
    """An access key and its secret, with a session token where they are temporary."""

    kind = "access-key"

    def __init__(self, name: str, options: AccessKeyOptions) -> None:
        self.name = name
        self._options = options
        remedy = options.told or "write new keys into its file"
        self._file = SecretFile(self._read, remedy, group_readable=options.group_readable)

    @property
    def renewable(self) -> bool:
        """Whether there is a command for it."""
        return bool(self._options.renew_command)

    def status(self) -> Credential:
        """Read the name of the key, and its end where it has one."""
        return self._file.look(self._options.file)

    def files(self) -> Mapping[str, Path]:
        """The file, as `keys`."""
        return {"keys": self._options.file}

    def environment(self) -> Mapping[str, str]:
        """AWS_SHARED_CREDENTIALS_FILE and AWS_PROFILE."""
        return {"AWS_SHARED_CREDENTIALS_FILE": str(self._options.file), "AWS_PROFILE": self._options.profile}

    async def renew(self) -> None:
        """Run the command that the settings name."""
        if not self.renewable:
            raise RenewalFailed("no renew_command is set")
        await self._options.run_renew_command()

    def _read(self, content: bytes, found: os.stat_result) -> Credential:
        try:
            keys = keys_in(content.decode(), self._options.profile)
        except UnicodeDecodeError:
            raise Unreadable("it is no text") from None
        except ValueError as error:
            raise Unreadable(str(error)) from None
        renews = self.renewable or self._options.kept_fresh
        return Credential(True, keys.access_key, expires=keys.expires, renews=renews)


plugin = CredentialPlugin("access-key", AccessKeyOptions, AccessKey)
