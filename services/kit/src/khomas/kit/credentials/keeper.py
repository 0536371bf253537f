"""Renews credentials before they expire, and warns while there is time."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from khomas.kit.credentials.interface import Credential, CredentialProvider, RenewalFailed
from khomas.kit.credentials.watch import Credentials

log = logging.getLogger(__name__)


class KeeperSettings(BaseModel):
    """When credentials are looked at, renewed, and warned about."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    look: timedelta = timedelta(seconds=5)
    # With so much left, or half of its lifetime when that is shorter, a credential is renewed.
    renew_before: timedelta = timedelta(hours=6)
    # Between attempts to renew the same credential.
    renew_again: timedelta = timedelta(minutes=1)
    # Each of these is announced once. Steps longer than half of a credential's lifetime are left out: nobody wants to
    # hear that a token of one hour ends within a day.
    warn_before: tuple[timedelta, ...] = (
        timedelta(days=7),
        timedelta(days=1),
        timedelta(hours=6),
        timedelta(hours=1),
    )


class What(StrEnum):
    """What happened to a credential."""

    EXPIRING = "expiring"
    EXPIRED = "expired"
    MISSING = "missing"
    RENEWED = "renewed"
    RENEWAL_FAILED = "renewal_failed"


@dataclass(frozen=True, slots=True)
class Notice:
    """Something worth telling about a credential."""

    what: What
    name: str
    kind: str
    credential: Credential
    message: str


@dataclass(frozen=True, slots=True)
class Rung:
    """A position on the ladder: the smaller `within`, the worse."""

    what: What
    within: timedelta = timedelta()


@dataclass(slots=True)
class _Kept:
    """What was said of a credential so far."""

    credential: Credential | None = None
    renew_at: datetime | None = None
    # The complaint that was announced.
    complaint: str = ""
    said: set[Rung] = field(default_factory=set)


def rung(credential: Credential, ladder: Sequence[timedelta], now: datetime) -> Rung | None:
    """Where a credential stands; None = nothing to say."""
    if not credential.present:
        return Rung(What.MISSING)
    left = credential.left(now)
    if left is None or credential.expires is None:
        return None
    if not left:
        return Rung(What.EXPIRED)
    whole = credential.expires - credential.not_before if credential.not_before else None
    steps = [step for step in ladder if left <= step and (whole is None or step < whole / 2)]
    return Rung(What.EXPIRING, min(steps)) if steps else None


def renew_due(credential: Credential, before: timedelta, now: datetime) -> bool:
    """Whether it is time to renew a credential."""
    left = credential.left(now)
    if left is None or credential.expires is None:
        return not credential.present
    if credential.not_before is not None:
        before = min(before, (credential.expires - credential.not_before) / 2)
    return left <= before


class Keeper:
    """Keeps credentials alive. One process does it; the others only look."""

    def __init__(
        self,
        credentials: Credentials,
        settings: KeeperSettings,
        announce: Callable[[Sequence[Notice]], Awaitable[None]],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._credentials = credentials
        self._settings = settings
        self._announce = announce
        self._clock = clock
        self._kept: dict[str, _Kept] = {}

    async def run(self) -> None:
        """Keep them, for ever."""
        while True:
            await self.step()
            await asyncio.sleep(self._settings.look.total_seconds())

    async def step(self) -> None:
        """Look at all, renew what is due, say what is new."""
        await self._credentials.refresh()
        complaints = await asyncio.gather(*[self._renewed(one) for one in self._credentials])
        if any(complaint is not None for complaint in complaints):
            await self._credentials.refresh()
        notices = [
            notice
            for provider, complaint in zip(self._credentials, complaints, strict=True)
            for notice in self._news(provider, complaint or "")
        ]
        for notice in notices:
            _log(notice)
        if notices:
            await self._announce(notices)

    async def _renewed(self, provider: CredentialProvider) -> str | None:
        """Renew one if it is due: why that failed, empty when it did not, None when it was not tried."""
        kept, now = self._kept.setdefault(provider.name, _Kept()), self._clock()
        known = self._credentials.known(provider.name)
        early = kept.renew_at is not None and now < kept.renew_at
        if not provider.renewable or early or not renew_due(known, self._settings.renew_before, now):
            return None
        kept.renew_at = now + self._settings.renew_again
        try:
            await provider.renew()
        except RenewalFailed as error:
            return str(error)
        except Exception as error:
            log.exception("credential.not_renewed", extra={"credential": provider.name})
            return f"its plug-in failed with {type(error).__name__}: see the log"
        kept.complaint = ""
        return ""

    def _news(self, provider: CredentialProvider, complaint: str) -> list[Notice]:
        kept, known = self._kept.setdefault(provider.name, _Kept()), self._credentials.known(provider.name)
        what: list[tuple[What, str]] = []
        if kept.credential is not None and _lasts_longer(known, kept.credential):
            if kept.said:
                what.append((What.RENEWED, f"{provider.name} lasts until {_written(known.expires)}"))
            kept.said.clear()
        if complaint and complaint != kept.complaint:
            kept.complaint = complaint
            what.append((What.RENEWAL_FAILED, f"{provider.name} could not be renewed: {complaint}"))
        at = rung(known, self._settings.warn_before, self._clock())
        if at is not None and at not in kept.said:
            kept.said.add(at)
            what.append((at.what, _sentence(provider.name, known, at)))
        kept.credential = known
        return [Notice(one, provider.name, provider.kind, known, message) for one, message in what]


def _lasts_longer(after: Credential, before: Credential) -> bool:
    if not after.present:
        return False
    return not before.present or after.expires is None or (before.expires or after.expires) < after.expires


def _sentence(name: str, credential: Credential, at: Rung) -> str:
    do = f"; renew it: {credential.remedy}" if credential.remedy else ""
    if at.what is What.MISSING:
        return f"{name} cannot be used: {credential.trouble}{do}"
    if at.what is What.EXPIRED:
        return f"{name} expired at {_written(credential.expires)}{do}"
    return f"{name} expires at {_written(credential.expires)}, within {at.within}{do}"


def _written(moment: datetime | None) -> str:
    return "for ever" if moment is None else moment.isoformat(timespec="seconds")


def _log(notice: Notice) -> None:
    level = logging.INFO if notice.what is What.RENEWED else logging.WARNING
    extra = {"credential": notice.name, "kind": notice.kind, "said": notice.message}
    log.log(level, "credential.%s", notice.what.value, extra=extra)
