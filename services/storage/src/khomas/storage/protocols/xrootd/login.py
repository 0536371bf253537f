"""How a server lets us in: by what is said when a connection begins, and with every request."""

import asyncio
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import quote

from khomas.kit.credentials import CredentialProvider
from khomas.storage.protocols.interface import Problem, ProtocolFault
from khomas.storage.protocols.xrootd.settings import Place, XrootdSettings

# By what the kinds of credentials call their files: the parameter of the library.
_PARAMETERS: Final = {"proxy": "xrd.gsiusrpxy", "token": "xrd.ztn"}
_AUTHORITIES: Final = "X509_CERT_DIR"
_PLAIN: Final = re.compile(r"[\w./@+:=-]+")


@dataclass(frozen=True, slots=True, repr=False)
class Ticket:
    """What lets in. Holds a secret."""

    # Parameters of the connection: names of files.
    login: str = ""
    # Goes along with every request.
    request: str = ""

    def on(self, path: str, *more: str) -> str:
        """Return a path with what goes along with it; refuse one that the server would read otherwise."""
        if "?" in path:
            raise ProtocolFault(Problem.REFUSED, f"XRootD ends names at a question mark: {path}")
        words = "&".join(filter(None, (*more, self.request)))
        return f"{path}?{words}" if words else path


class Login:
    """Makes tickets of one credential."""

    def __init__(self, place: Place, settings: XrootdSettings, credential: CredentialProvider | None) -> None:
        if settings.authorities is not None:
            believe(settings.authorities)
        self._place = place
        self._settings = settings
        self._credential = credential

    async def ticket(self) -> Ticket:
        """Return what lets in now, or raise CREDENTIAL."""
        if self._credential is None:
            return Ticket()
        return await asyncio.to_thread(self._read, self._credential)

    def _read(self, credential: CredentialProvider) -> Ticket:
        known = credential.status()
        if not known.usable(datetime.now(UTC)):
            trouble = known.trouble or "it is not valid now"
            raise ProtocolFault(Problem.CREDENTIAL, f"credential {credential.name}: {trouble}. {known.remedy}".rstrip())
        for kind, path in credential.files().items():
            if kind in _PARAMETERS:
                return Ticket(f"{_PARAMETERS[kind]}={_plain(path)}", self._token(path) if kind == "token" else "")
        message = f"credential {credential.name} is of kind {credential.kind}; root takes tokens and proxies"
        raise ProtocolFault(Problem.CONFIGURATION, message)

    def _token(self, path: Path) -> str:
        if not (self._place.secure or self._settings.clear_tokens):
            message = f"tokens go over TLS only; give the address as roots://{self._place}"
            raise ProtocolFault(Problem.CONFIGURATION, message)
        try:
            return f"authz=Bearer%20{quote(path.read_text().strip())}"
        except OSError as error:
            raise ProtocolFault(Problem.CREDENTIAL, f"no token can be read: {error.strerror}") from error


def believe(authorities: Path) -> None:
    """Have servers believed that these authorities vouch for. The library reads it once, from the environment."""
    before = os.environ.setdefault(_AUTHORITIES, str(authorities))
    if before != str(authorities):
        raise ValueError(f"option authorities: {before} is used by this process already, and can only be one")


def _plain(path: Path) -> str:
    if not _PLAIN.fullmatch(str(path)):
        raise ProtocolFault(Problem.CONFIGURATION, f"the library cannot be told of a file with this name: {path}")
    return str(path)
