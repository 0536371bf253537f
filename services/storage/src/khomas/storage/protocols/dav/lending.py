"""Tokens of the WLCG profile that let in for reading one file, signed with a key that the server believes."""

import re
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Final

import jwt

from khomas.kit.ids import new_uid
from khomas.storage.protocols.interface import Problem, ProtocolFault

# Clocks differ.
_SKEW_SECONDS: Final = 60
# A blank ends a scope, and a shorter path lets in everywhere below it; escapes are read in more ways than one.
_PLAIN: Final = re.compile(r"[A-Za-z0-9/._~+=@,:-]+")


class Lender:
    """An issuer of tokens."""

    def __init__(self, issuer: str, key: Path, key_id: str, audience: str) -> None:
        self._issuer = issuer
        self._key = key
        self._key_id = key_id
        self._audience = audience

    def tokens(self, paths: Sequence[str], lifetime: timedelta) -> list[str | None]:
        """Return a token for each absolute path on the server, good for reading it; None for odd names. Blocks."""
        try:
            key = self._key.read_text()
        except OSError as error:
            raise ProtocolFault(Problem.CREDENTIAL, f"the key {self._key}: {error.strerror}") from error
        now = int(time.time())
        claims = {
            "iss": self._issuer,
            "sub": "khomas-storage",
            "aud": self._audience,
            "wlcg.ver": "1.0",
            "iat": now,
            "nbf": now - _SKEW_SECONDS,
            "exp": now + int(lifetime.total_seconds()),
        }
        headers = {"kid": self._key_id} if self._key_id else None
        try:
            return [
                jwt.encode({**claims, "jti": new_uid(), "scope": f"storage.read:{path}"}, key, "ES256", headers)
                if _PLAIN.fullmatch(path)
                else None
                for path in paths
            ]
        except (jwt.PyJWTError, ValueError) as error:
            # What is wrong with a key is not worth showing it.
            raise ProtocolFault(Problem.CREDENTIAL, f"{self._key} is no key for ES256") from error
