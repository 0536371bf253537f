"""The configured credentials as they were when they were last looked at."""

import asyncio
import logging
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from khomas.kit.credentials.interface import Credential, CredentialProvider

log = logging.getLogger(__name__)

_UNKNOWN = Credential(present=False, trouble="it was not looked at yet")


class Credentials:
    """Credentials by name. Asking costs nothing: files are looked at in `refresh` alone, away from the event loop."""

    def __init__(self, providers: Mapping[str, CredentialProvider]) -> None:
        self._providers = dict(sorted(providers.items()))
        self._known: dict[str, Credential] = {}
        self._since: dict[str, datetime] = {}

    def __iter__(self) -> Iterator[CredentialProvider]:
        return iter(self._providers.values())

    def __contains__(self, name: str) -> bool:
        return name in self._providers

    def __getitem__(self, name: str) -> CredentialProvider:
        return self._providers[name]

    def known(self, name: str) -> Credential:
        """What it was like."""
        return self._known.get(name, _UNKNOWN)

    def since(self, name: str) -> datetime | None:
        """Since when it is missing or expired; None when it was neither."""
        known = self.known(name)
        if known.present and known.expires is not None and known.expires <= datetime.now(UTC):
            return known.expires
        return self._since.get(name)

    async def refresh(self) -> None:
        """Look at all of them, at the same time."""
        found = await asyncio.gather(*[_look(one) for one in self])
        now = datetime.now(UTC)
        for name, credential in zip(self._providers, found, strict=True):
            self._known[name] = credential
            if credential.present:
                self._since.pop(name, None)
            else:
                self._since.setdefault(name, now)


async def _look(provider: CredentialProvider) -> Credential:
    """Look at one; a plug-in that breaks must not hide the others."""
    try:
        return await asyncio.to_thread(provider.status)
    except Exception as error:
        log.exception("credential.unreadable", extra={"credential": provider.name})
        return Credential(present=False, trouble=f"its plug-in failed with {type(error).__name__}: see the log")
