"""Public keys of issuers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey


@dataclass(frozen=True, slots=True)
class Key:
    """A public key, pinned to the one algorithm it is for."""

    id: str
    algorithm: str
    key: RSAPublicKey | EllipticCurvePublicKey


class KeysUnavailable(Exception):
    """The keys of an issuer were never had, or not for too long."""


class KeySource(Protocol):
    """The keys of one issuer."""

    async def key(self, key_id: str) -> Key | None:
        """Return the key of this id; raise KeysUnavailable if it cannot be known."""


class StaticKeys:
    """Keys that are known from the start."""

    def __init__(self, *keys: Key) -> None:
        self._keys = {key.id: key for key in keys}

    async def key(self, key_id: str) -> Key | None:
        """Return the key of this id."""
        return self._keys.get(key_id)


def keys_of(document: Any) -> Mapping[str, Key]:
    """Return the usable signing keys of a JWKS document by id; what is not usable is left out."""
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError("not a JWKS document")
    keys = (_key(entry) for entry in entries if isinstance(entry, dict))
    return {key.id: key for key in keys if key is not None}


def _key(entry: dict[str, Any]) -> Key | None:
    algorithm = {"RSA": "RS256", "EC": "ES256"}.get(str(entry.get("kty")), "")
    key_id = entry.get("kid")
    if not isinstance(key_id, str) or entry.get("use", "sig") != "sig":
        return None
    if not algorithm or entry.get("alg", algorithm) != algorithm:
        return None
    try:
        key = jwt.PyJWK(entry, algorithm=algorithm).key
    except (jwt.PyJWTError, KeyError, ValueError):
        return None
    strong = (isinstance(key, RSAPublicKey) and key.key_size >= 2048) or (
        isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1)
    )
    return Key(key_id, algorithm, key) if strong else None
