"""Which place of the tree a request is about, and whether its token allows that."""

import base64
import binascii
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from aiohttp import hdrs, web

from khomas.kit.auth.paths import decoded_path
from khomas.kit.auth.principal import Principal, allows
from khomas.kit.auth.verifier import Verifier
from khomas.kit.errors import TokenMissing
from khomas.storage.door.refusal import Refusal
from khomas.storage.errors import PathRefused
from khomas.storage.paths import PRIVATE, checked

ROOT: Final = "/dav"
READ: Final = "storage.read"
CREATE: Final = "storage.create"
MODIFY: Final = "storage.modify"
# Each of them implies to know what is there; none of them says anything of listing, which is for readers.
STAT: Final = (READ, CREATE, MODIFY, "storage.stage")


@dataclass(frozen=True, slots=True)
class Place:
    """A file or folder of a StorageElement. Without an element it is the tree itself."""

    element: str = ""
    # Relative to the root of the element, which is "".
    path: str = ""
    # Named with a slash at the end.
    slash: bool = False

    @property
    def scope_path(self) -> str:
        """Return what scopes are compared with."""
        return f"/{self.path}/" if self.slash and self.path else f"/{self.path}"

    @property
    def as_folder(self) -> "Place":
        """Return the same, named as a folder: a scope that ends in a slash covers it then."""
        return Place(self.element, self.path, slash=True)

    @property
    def href(self) -> str:
        """Return its address as it is quoted in listings."""
        parts = [ROOT, *filter(None, (self.element, self.path))]
        end = "/" if self.slash or not self.path else ""
        return quote("/".join(parts), safe="/~") + end

    def child(self, name: str, *, folder: bool) -> "Place":
        """Return what is directly in it."""
        return Place(self.element, f"{self.path}/{name}" if self.path else name, slash=folder)


def place_of(raw_path: str) -> Place:
    """Return what the path of an address, quoted as it was sent, stands for; nothing odd is put right."""
    plain = decoded_path(raw_path)
    if plain is None or not (plain == ROOT or plain.startswith(ROOT + "/")):
        raise PathRefused(path=raw_path)
    element, _, path = plain.removeprefix(ROOT).removeprefix("/").partition("/")
    slash = plain.endswith("/")
    path = path.removesuffix("/")
    if path and checked(path).partition("/")[0] == PRIVATE:
        raise Refusal(403, "PRIVATE", f"{PRIVATE} belongs to the service; begin one folder below {ROOT}/{element}/.")
    return Place(element, path, slash)


async def caller(request: web.Request, verifier: Verifier) -> Principal:
    """Return who asks; raises TokenMissing, TokenRefused or TokenExpired."""
    scheme, _, value = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    match scheme.lower():
        case "bearer":
            return await verifier.verify(value.strip())
        case "basic":
            # For browsers: the token is the password, whatever the name.
            return await verifier.verify(_password(value.strip()))
        case _:
            raise TokenMissing


def require(principal: Principal, place: Place, *one_of: str) -> None:
    """Refuse who has none of these capabilities there."""
    path = place.scope_path
    if not any(allows(principal, capability, [path]) for capability in one_of):
        raise Refusal(403, "CAPABILITY_MISSING", f"The token does not have {' or '.join(one_of)} for {path}.")


def _password(value: str) -> str:
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeError):
        raise TokenMissing from None
