"""Tokens of an issuer that does not run: servers are given its public key in the way that they keep keys."""

import json
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

ISSUER = "https://issuer.khomas.test"
AUDIENCE = "https://wlcg.cern.ch/jwt/v1/any"
_KEY_ID = "khomas-test"


@dataclass(frozen=True, slots=True)
class Issuer:
    """Signs tokens of the WLCG profile."""

    folder: Path
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def new(cls, folder: Path) -> "Issuer":
        """Make a key."""
        return cls(folder, ec.generate_private_key(ec.SECP256R1()))

    def token(self, name: str, scope: str, seconds: float = 3600) -> Path:
        """Write a token into a file that only we can read; one whose time is over has negative seconds."""
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "sub": "robot",
            "aud": AUDIENCE,
            "scope": scope,
            "wlcg.ver": "1.0",
            "jti": name,
            "iat": now - 7200,
            "nbf": now - 7200,
            "exp": int(now + seconds),
        }
        path = self.folder / f"{name}.token"
        path.touch(mode=0o600)
        path.write_text(jwt.encode(claims, self.key, "ES256", headers={"kid": _KEY_ID}))
        return path

    def keep_for_scitokens(self, cache: Path) -> None:
        """Put the public key where libscitokens keeps keys that it has fetched (`$XDG_CACHE_HOME` = cache)."""
        keys = {"keys": [ECAlgorithm.to_jwk(self.key.public_key(), as_dict=True) | {"kid": _KEY_ID, "alg": "ES256"}]}
        later = int(time.time()) + 7 * 86400
        (cache / "scitokens").mkdir(parents=True)
        # Its own spelling.
        with sqlite3.connect(cache / "scitokens/scitokens_cpp.sqllite") as database:
            database.execute("CREATE TABLE keycache (issuer text UNIQUE PRIMARY KEY NOT NULL, keys text NOT NULL)")
            value = json.dumps({"jwks": keys, "expires": later, "next_update": later})
            database.execute("INSERT INTO keycache VALUES (?, ?)", (ISSUER, value))
        database.close()
