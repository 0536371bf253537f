"""The token issuer of an embedded installation. The production profile refuses it."""

import json
import os
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from khomas.kit.auth.keys import Key, StaticKeys
from khomas.kit.auth.scopes import EVERYTHING
from khomas.kit.auth.verifier import Issuer
from khomas.kit.files import write_atomically

# A reserved top-level domain: no real issuer can be called so.
DEVELOPMENT_HOST = "development.khomas.invalid"


def is_development(issuer_url: str) -> bool:
    """Tell whether an issuer is a development one."""
    return DEVELOPMENT_HOST in issuer_url


@dataclass(frozen=True, slots=True)
class DevelopmentIssuer:
    """Issues tokens for one installation, signed by a key in its state folder."""

    url: str
    vo: str
    audience: str
    key_id: str
    private_key: ec.EllipticCurvePrivateKey

    @classmethod
    def open(cls, folder: Path, vo: str) -> "DevelopmentIssuer":
        """Take the key of a folder, or make one on first use (mode 0600)."""
        file = folder / "issuer.json"
        if not file.exists():
            write_atomically(file, _fresh_identity(), mode=0o600)
        identity = json.loads(file.read_text())
        key = serialization.load_pem_private_key(identity["private_key"].encode(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError(f"{file} holds no elliptic-curve key; remove it to get a new one")
        installation = identity["installation"]
        return cls(
            url=f"https://{DEVELOPMENT_HOST}/{installation}",
            vo=vo,
            audience=f"grpcs://{installation}.{DEVELOPMENT_HOST}",
            key_id=identity["key_id"],
            private_key=key,
        )

    @property
    def trusted(self) -> Issuer:
        """Return this issuer as a verifier wants it."""
        key = Key(self.key_id, "ES256", self.private_key.public_key())
        return Issuer(self.url, self.vo, StaticKeys(key))

    def token(
        self,
        subject: str,
        capabilities: Iterable[str] = EVERYTHING,
        *,
        audience: str | None = None,
        groups: Iterable[str] = (),
        expires_in: timedelta = timedelta(hours=1),
    ) -> str:
        """Issue an access token, for example with the capabilities ["catalog.read:/", "compute.create"].

        The subject says the kind of the caller: "alice" is a user, "service:catalog", "pilot:…",
        "job:…" and "host:…" are what they say.
        """
        now = time.time()
        claims = {
            "wlcg.ver": "1.3",
            "iss": self.url,
            "sub": subject,
            "aud": self.audience if audience is None else audience,
            "iat": now,
            "nbf": now,
            "exp": now + expires_in.total_seconds(),
            "jti": str(uuid.uuid4()),
            "scope": " ".join(capabilities),
            "wlcg.groups": list(groups),
        }
        headers = {"kid": self.key_id, "typ": "at+jwt"}
        return jwt.encode(claims, self.private_key, algorithm="ES256", headers=headers)


def _fresh_identity() -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    identity = {
        "installation": uuid.uuid4().hex,
        "key_id": os.urandom(8).hex(),
        "private_key": pem.decode(),
    }
    return json.dumps(identity)
