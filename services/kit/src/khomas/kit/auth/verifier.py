"""Turns a bearer token into a Principal, or says which rule refuses it."""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import jwt

from khomas.kit.auth import token as tokens
from khomas.kit.auth.keys import Key, KeySource, KeysUnavailable
from khomas.kit.auth.principal import Kind, Principal
from khomas.kit.auth.scopes import Capability, ScopeInvalid, capabilities_of
from khomas.kit.auth.token import Claims, Refused
from khomas.kit.config import AuthSettings
from khomas.kit.errors import DomainError, TokenExpired, TokenRefused, UpstreamUnavailable

_ANY_AUDIENCE = "https://wlcg.cern.ch/jwt/v1/any"
# Clocks differ; this much is forgiven for a token from the future, nothing for one that is over.
_SKEW = timedelta(seconds=60).total_seconds()
_CACHE_SECONDS = 300.0
_CACHE_SIZE = 10_000
_KINDS = {kind.value: kind for kind in Kind}


@dataclass(frozen=True, slots=True)
class Issuer:
    """A trusted issuer: one VO and its keys."""

    url: str
    vo: str
    keys: KeySource


class Verifier:
    """Verify tokens of the trusted issuers. Verdicts are kept for at most five minutes."""

    def __init__(self, issuers: list[Issuer], settings: AuthSettings, clock: Callable[[], float] = time.time) -> None:
        self._issuers: Mapping[str, Issuer] = {issuer.url: issuer for issuer in issuers}
        self._settings = settings
        self._audiences = frozenset(settings.audiences) | ({_ANY_AUDIENCE} if settings.accept_any_audience else set())
        self._clock = clock
        self._verdicts: dict[bytes, tuple[Principal, float]] = {}

    def forget(self) -> None:
        """Drop all verdicts, as after a change of an issuer's keys."""
        self._verdicts.clear()

    def known(self, token: str) -> Principal | None:
        """Return the principal of a token that was verified a moment ago."""
        verdict = self._verdicts.get(hashlib.sha256(token.encode()).digest())
        return verdict[0] if verdict is not None and self._clock() < verdict[1] else None

    async def verify(self, token: str) -> Principal:
        """Return the principal of a token; raise TokenRefused or TokenExpired."""
        known = self.known(token)
        if known is not None:
            return known
        try:
            principal = await self.examine(token)
        except Refused as refusal:
            raise _as_error(refusal, token) from refusal
        except KeysUnavailable as error:
            raise UpstreamUnavailable(service="token issuer") from error
        self._remember(token, principal)
        return principal

    async def examine(self, token: str) -> Principal:
        """Check every rule, without the cache; raise Refused with the first one broken."""
        claims = tokens.read(token)
        issuer = self._issuers.get(claims.issuer)
        if issuer is None:
            raise Refused("issuer", f"the issuer {claims.issuer[:200]} is not trusted here")
        _check_signature(token, claims, await issuer.keys.key(claims.key_id))
        self._check_times(claims)
        if not self._audiences.intersection(claims.audiences):
            raise Refused("audience", f"the token is for {', '.join(claims.audiences)[:200]}, not for this service")
        if claims.version.partition(".")[0] != "1":
            raise Refused("version", f"wlcg.ver {claims.version[:20]} is not understood")
        return self._principal(claims, issuer)

    def _check_times(self, claims: Claims) -> None:
        now = self._clock()
        if claims.expires_at <= now:
            raise Refused("expired", f"the token expired at {_utc(claims.expires_at).isoformat()}")
        if max(claims.not_before, claims.issued_at) > now + _SKEW:
            raise Refused("not_yet", "the token is not valid yet")
        if claims.expires_at - claims.issued_at > self._settings.max_lifetime.total_seconds():
            raise Refused("lifetime", f"the token lives longer than {self._settings.max_lifetime}")

    def _principal(self, claims: Claims, issuer: Issuer) -> Principal:
        try:
            capabilities = capabilities_of(claims.scopes)
            roles: tuple[str, ...] = ()
            if not capabilities:
                roles, capabilities = self._of_groups(claims.groups)
        except ScopeInvalid as error:
            raise Refused("scope", str(error)) from error
        return Principal(
            vo=issuer.vo,
            issuer=issuer.url,
            subject=claims.subject,
            kind=_kind(claims.subject, capabilities),
            groups=claims.groups,
            capabilities=capabilities,
            roles=roles,
            token_id=claims.token_id,
            expires_at=_utc(claims.expires_at),
        )

    def _of_groups(self, groups: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[Capability, ...]]:
        """Return the roles of groups and what they grant; a child group never means its parent."""
        wanted = {role for group in groups for role in self._settings.group_roles.get(group, ())}
        scopes = sorted({scope for role in wanted for scope in self._settings.roles.get(role, ())})
        return tuple(sorted(wanted)), capabilities_of(scopes)

    def _remember(self, token: str, principal: Principal) -> None:
        until = min(principal.expires_at.timestamp(), self._clock() + _CACHE_SECONDS)
        if len(self._verdicts) >= _CACHE_SIZE:
            self._verdicts.pop(next(iter(self._verdicts)))
        self._verdicts[hashlib.sha256(token.encode()).digest()] = (principal, until)


def _check_signature(token: str, claims: Claims, key: Key | None) -> None:
    if key is None:
        raise Refused("key", f"the issuer has no key {claims.key_id[:100]!r}")
    if key.algorithm != claims.algorithm:
        raise Refused("algorithm", f"the key is for {key.algorithm}, the token says {claims.algorithm}")
    try:
        jwt.api_jws.decode(token, key=key.key, algorithms=[key.algorithm])
    except jwt.PyJWTError as error:
        raise Refused("signature", "the signature is not the issuer's") from error


def _kind(subject: str, capabilities: tuple[Capability, ...]) -> Kind:
    prefix, colon, _ = subject.partition(":")
    kind = _KINDS.get(prefix, Kind.USER) if colon else Kind.USER
    # Profile 1.3: a host is one only with the scope that says so.
    return Kind.USER if kind is Kind.HOST and Capability("host.auth") not in capabilities else kind


def _as_error(refusal: Refused, token: str) -> DomainError:
    if refusal.rule == "expired":
        return TokenExpired(expired_at=_utc(tokens.read(token).expires_at))
    return TokenRefused(rule=refusal.rule)


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
