"""Reads a JWT strictly, before anything in it is believed."""

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeGuard

MAX_BYTES = 8192
# Year 5138: beyond it datetime fails before the token does.
_LATEST = 1e11
_SHAPE = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\Z")
_ALGORITHMS = frozenset({"RS256", "ES256"})
# Headers that would let the token choose its own key or its own reading.
_FORBIDDEN_HEADERS = frozenset({"jku", "x5u", "jwk", "x5c", "crit", "b64", "zip"})
_TYPES = frozenset({"jwt", "at+jwt", "application/at+jwt"})
_ID_TOKEN_MARKS = frozenset({"nonce", "at_hash", "c_hash"})


class Refused(Exception):
    """A token breaks a rule. `rule` is for clients, `detail` for people."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(f"{rule}: {detail}")
        self.rule = rule
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Claims:
    """The claims of a token whose shape is right. The signature is not checked yet."""

    algorithm: str
    key_id: str
    issuer: str
    subject: str
    audiences: tuple[str, ...]
    issued_at: float
    not_before: float
    expires_at: float
    token_id: str
    version: str
    scopes: tuple[str, ...]
    groups: tuple[str, ...]


def read(token: str) -> Claims:
    """Return the claims of a token, or raise Refused with the rule that it breaks."""
    if len(token) > MAX_BYTES:
        raise Refused("size", f"the token has {len(token)} bytes, at most {MAX_BYTES} are read")
    if not _SHAPE.match(token):
        raise Refused("shape", "the token is not three base64url parts joined by dots")
    head, body, _ = token.split(".")
    algorithm, key_id = _header(_json_object(head, "header"))
    return _claims(algorithm, key_id, _json_object(body, "payload"))


def _json_object(part: str, rule: str) -> dict[str, Any]:
    try:
        text = base64.b64decode(part + "=" * (-len(part) % 4), b"-_", validate=True).decode()
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (binascii.Error, ValueError, RecursionError) as error:
        raise Refused(rule, f"the {rule} is not a JSON object with unique keys ({error})") from error
    if not isinstance(value, dict):
        raise Refused(rule, f"the {rule} is not a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key stands twice")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _header(header: Mapping[str, Any]) -> tuple[str, str]:
    if forbidden := sorted(_FORBIDDEN_HEADERS & header.keys()):
        raise Refused("header", f"the header has {', '.join(forbidden)}")
    if not isinstance(header.get("alg"), str) or header["alg"] not in _ALGORITHMS:
        raise Refused("algorithm", "only RS256 and ES256 are accepted")
    kind = header.get("typ", "JWT")
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        raise Refused("type", "the header says that this is not an access token")
    key_id = header.get("kid")
    if not isinstance(key_id, str) or not 0 < len(key_id) <= 256:
        raise Refused("key_id", "the header names no key (kid)")
    return header["alg"], key_id


def _claims(algorithm: str, key_id: str, payload: Mapping[str, Any]) -> Claims:
    if marks := sorted(_ID_TOKEN_MARKS & payload.keys()):
        raise Refused("type", f"this is an ID token (it has {', '.join(marks)}), not an access token")
    issued_at = _time(payload, "iat")
    return Claims(
        algorithm=algorithm,
        key_id=key_id,
        issuer=_text(payload, "iss"),
        subject=_text(payload, "sub"),
        audiences=_audiences(payload.get("aud")),
        issued_at=issued_at,
        not_before=_time(payload, "nbf") if "nbf" in payload else issued_at,
        expires_at=_time(payload, "exp"),
        token_id=_text(payload, "jti"),
        version=_text(payload, "wlcg.ver"),
        scopes=tuple(_scope(payload).split()),
        groups=_groups(payload.get("wlcg.groups", [])),
    )


def _text(payload: Mapping[str, Any], name: str) -> str:
    value = payload.get(name)
    if not _is_text(value) or not value:
        raise Refused("claims", f"the claim {name} is missing or not a text")
    return value


def _is_text(value: object) -> TypeGuard[str]:
    """Tell whether a value is a text that can be logged and stored: no control characters or lone surrogates."""
    return isinstance(value, str) and value.isprintable()


def _time(payload: Mapping[str, Any], name: str) -> float:
    value = payload.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _LATEST:
        raise Refused("claims", f"the claim {name} is missing or not a time in seconds")
    return float(value)


def _scope(payload: Mapping[str, Any]) -> str:
    value = payload.get("scope", "")
    if not _is_text(value):
        raise Refused("claims", "the claim scope is not a text")
    return value


def _audiences(value: object) -> tuple[str, ...]:
    audiences = [value] if isinstance(value, str) else value
    if not isinstance(audiences, list) or not audiences or not all(map(_is_text, audiences)):
        raise Refused("claims", "the claim aud is missing or not a text or list of texts")
    return tuple(audiences)


def _groups(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(map(_is_text, value)):
        raise Refused("claims", "the claim wlcg.groups is not a list of texts")
    return tuple(value)
