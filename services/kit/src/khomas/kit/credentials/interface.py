"""What a credential is: the plug-in interface of the entry-point group `khomas.credentials`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Generic, Protocol, TypeVar


class RenewalFailed(Exception):
    """A credential could not be renewed; the message says why and holds no secret."""


@dataclass(frozen=True, slots=True)
class Credential:
    """What is known of a credential now. Never the credential itself."""

    # There, readable by us alone, and understood; says nothing about its times.
    present: bool
    # Whom it speaks for: a DN, a principal, the `sub` of a token, the fingerprint of a key.
    subject: str = ""
    not_before: datetime | None = None
    # None = never.
    expires: datetime | None = None
    # It is renewed without a person at most until then; None = for ever. Counts only where `renews`.
    renewable_until: datetime | None = None
    # Nobody has to do anything for it to last.
    renews: bool = False
    # What it allows, in the words of its kind: scopes, FQANs, principals.
    can: tuple[str, ...] = ()
    # Why it is not present.
    trouble: str = ""
    # What a person does about it: a command.
    remedy: str = ""

    def usable(self, now: datetime) -> bool:
        """Whether it is good at this moment."""
        begun = self.not_before is None or self.not_before <= now
        return self.present and begun and (self.expires is None or self.expires > now)

    def covers(self, now: datetime, span: timedelta, margin: timedelta) -> bool:
        """Whether it is good now, and for so long if nobody does anything."""
        if not self.usable(now) or (self.expires is not None and self.expires <= now + margin):
            return False
        until = self.renewable_until if self.renews else self.expires
        return until is None or until >= now + span + margin

    def left(self, now: datetime) -> timedelta | None:
        """How long it lasts; None = for ever, nothing when it is not there."""
        if not self.present:
            return timedelta()
        return None if self.expires is None else max(timedelta(), self.expires - now)


class CredentialProvider(Protocol):
    """One configured credential. Whatever is done with it, its content stays out of logs, arguments and errors."""

    @property
    def name(self) -> str:
        """The name that the settings give it."""

    @property
    def kind(self) -> str:
        """The plug-in."""

    @property
    def renewable(self) -> bool:
        """Whether `renew` can do something."""

    def status(self) -> Credential:
        """Look at it. Reads local files; a file is read again only when it has changed."""

    def files(self) -> Mapping[str, Path]:
        """Where it is, for libraries: by what the kind calls its files."""

    def environment(self) -> Mapping[str, str]:
        """What commands need in their environment: paths, never a secret."""

    async def renew(self) -> None:
        """Replace it by one that lasts longer, in one step. Raises `RenewalFailed`."""


SettingsT = TypeVar("SettingsT")


@dataclass(frozen=True, slots=True)
class CredentialPlugin(Generic[SettingsT]):
    """Entry point in the group `khomas.credentials`."""

    # Kind of credential: "x509".
    name: str
    settings: type[SettingsT]
    open: Callable[[str, SettingsT], CredentialProvider]
