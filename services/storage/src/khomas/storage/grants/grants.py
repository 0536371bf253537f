"""Short-lived rights to single addresses of the door, signed by the service."""

import base64
import hashlib
import hmac
import json
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from khomas.storage.errors import GrantRefused

_SIGNATURE_BYTES = 32


class Right(StrEnum):
    """What a grant allows."""

    READ = "r"
    WRITE = "w"


@dataclass(frozen=True, slots=True)
class Grant:
    """A right to one address. One that ends in "/" covers what is directly below it."""

    right: Right
    address: str
    # Whole seconds since 1970.
    expires_at: int
    # Checksum of what is read there, as the catalogue has it; "" if unknown.
    adler32: str = ""

    def covers(self, right: Right, address: str) -> bool:
        """Tell whether this grant is for such an access."""
        if right is not self.right:
            return False
        if self.address.endswith("/"):
            return address.rpartition("/")[0] + "/" == self.address
        return address == self.address


class Signer:
    """Makes and reads the tokens that carry grants."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def token(self, grant: Grant) -> str:
        """Return a grant as a token for the Authorization header."""
        claims = [grant.right.value, grant.address, grant.expires_at, grant.adler32]
        body = json.dumps(claims, ensure_ascii=False, separators=(",", ":")).encode()
        return base64.urlsafe_b64encode(self._signature(body) + body).decode()

    def grant(self, token: str, now: datetime) -> Grant:
        """Return what a token grants; GrantRefused if it is not ours or has expired.

        How long an upload takes files stands in its row, because that can be renewed, and is looked at there.
        """
        try:
            raw = base64.b64decode(token, altchars=b"-_", validate=True)
        except ValueError:
            raise GrantRefused from None
        signature, body = raw[:_SIGNATURE_BYTES], raw[_SIGNATURE_BYTES:]
        if not hmac.compare_digest(signature, self._signature(body)):
            raise GrantRefused
        right, address, expires_at, adler32 = json.loads(body)
        if right == Right.READ and now.timestamp() >= expires_at:
            raise GrantRefused
        return Grant(Right(right), address, expires_at, adler32)

    def _signature(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, hashlib.sha256)
