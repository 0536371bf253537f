"""Every row of the attack table, and the rules of the WLCG profile."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from khomas.kit.auth.keys import Key, StaticKeys
from khomas.kit.auth.principal import Kind
from khomas.kit.auth.scopes import Capability
from khomas.kit.auth.token import Refused
from khomas.kit.auth.verifier import Issuer, Verifier
from khomas.kit.config import AuthSettings
from khomas.kit.errors import TokenExpired, TokenRefused

ISSUER = "https://issuer.example/vo"
AUDIENCE = "grpcs://khomas.example:7443"
EC_KEY = ec.generate_private_key(ec.SECP256R1())
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def encoded(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    base = {
        "wlcg.ver": "1.3",
        "iss": ISSUER,
        "sub": "alice",
        "aud": AUDIENCE,
        "iat": now,
        "nbf": now,
        "exp": now + 3600,
        "jti": "token-1",
        "scope": "storage.read:/vo compute.read",
    }
    named = {name.replace("wlcg_", "wlcg."): value for name, value in changes.items()}
    return {name: value for name, value in (base | named).items() if value is not None}


def signed(payload: Mapping[str, Any] | None = None, **header: Any) -> str:
    headers = {"kid": "ec"} | header
    return jwt.encode(dict(payload or claims()), EC_KEY, algorithm="ES256", headers=headers)


def signed_raw(header: bytes, payload: bytes) -> str:
    """Sign bytes that no JWT library would produce."""
    signing_input = f"{encoded(header)}.{encoded(payload)}".encode()
    signature = jwt.get_algorithm_by_name("ES256").sign(signing_input, EC_KEY)
    return f"{signing_input.decode()}.{encoded(signature)}"


HS256 = b'{"alg":"HS256","kid":"ec"}'
HEADER = b'{"alg":"ES256","kid":"ec"}'


@dataclass
class Clock:
    """A clock that tests move."""

    now: float

    def __call__(self) -> float:
        return self.now


def verifier(clock: Clock | None = None, **settings: Any) -> Verifier:
    keys = StaticKeys(Key("ec", "ES256", EC_KEY.public_key()), Key("rsa", "RS256", RSA_KEY.public_key()))
    auth = AuthSettings(audiences=(AUDIENCE,), **settings)
    return Verifier([Issuer(ISSUER, "hess", keys)], auth, clock or time.time)


async def rule_that_refuses(token: str, **settings: Any) -> str:
    with pytest.raises(Refused) as caught:
        await verifier(**settings).examine(token)
    return caught.value.rule


async def test_sound_token_makes_a_principal() -> None:
    principal = await verifier().verify(signed())
    assert (principal.vo, principal.subject, principal.kind) == ("hess", "alice", Kind.USER)
    assert principal.capabilities == (Capability("storage.read", "/vo"), Capability("compute.read"))
    assert principal.token_id == "token-1"


async def test_rs256_is_accepted() -> None:
    token = jwt.encode(claims(), RSA_KEY, algorithm="RS256", headers={"kid": "rsa", "typ": "at+jwt"})
    assert (await verifier().verify(token)).subject == "alice"


@pytest.mark.parametrize("name", ["none", "nOnE", "None", "HS256", "ES384", "PS256", "EdDSA", 1, None, ["ES256"]])
async def test_other_algorithms_are_refused(name: object) -> None:
    header = json.dumps({"alg": name, "kid": "ec"}).encode()
    assert await rule_that_refuses(signed_raw(header, json.dumps(claims()).encode())) == "algorithm"


async def test_hs256_with_the_public_key_as_secret_is_refused() -> None:
    pem = EC_KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    text = f"{encoded(HS256)}.{encoded(json.dumps(claims()).encode())}"
    token = f"{text}.{encoded(hmac.digest(pem, text.encode(), hashlib.sha256))}"
    assert await rule_that_refuses(token) == "algorithm"


async def test_rsa_header_with_the_ec_key_is_refused() -> None:
    token = jwt.encode(claims(), RSA_KEY, algorithm="RS256", headers={"kid": "ec"})
    assert await rule_that_refuses(token) == "algorithm"


@pytest.mark.parametrize("name", ["jku", "x5u", "jwk", "x5c", "crit", "b64", "zip"])
async def test_header_that_chooses_its_own_key_or_reading_is_refused(name: str) -> None:
    header = json.dumps({"alg": "ES256", "kid": "ec", name: "x"}).encode()
    assert await rule_that_refuses(signed_raw(header, json.dumps(claims()).encode())) == "header"


@pytest.mark.parametrize("signature", [b"\0" * 64, b"\0" * 32 + b"\1" * 32, b"x"])
async def test_made_up_signature_is_refused(signature: bytes) -> None:
    token = signed().rpartition(".")[0] + "." + encoded(signature)
    assert await rule_that_refuses(token) == "signature"


async def test_der_signature_is_refused() -> None:
    text = signed().rpartition(".")[0]
    from cryptography.hazmat.primitives import hashes

    token = f"{text}.{encoded(EC_KEY.sign(text.encode(), ec.ECDSA(hashes.SHA256())))}"
    assert await rule_that_refuses(token) == "signature"


async def test_flipped_bit_in_the_payload_is_refused() -> None:
    head, _, signature = signed().split(".")
    other = encoded(json.dumps(claims(sub="alicf")).encode())
    assert await rule_that_refuses(f"{head}.{other}.{signature}") == "signature"


async def test_alias_of_the_signature_by_trailing_bits_is_refused() -> None:
    token = signed()
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    alias = token[:-1] + alphabet[alphabet.index(token[-1]) ^ 1]
    assert await rule_that_refuses(alias) == "signature"


@pytest.mark.parametrize(
    "bend",
    [
        lambda token: token + "\n",
        lambda token: token.replace(".", ".\n", 1),
        lambda token: token + ".",
        lambda token: token + "=",
        lambda token: token + ".x",
        lambda token: "",
        lambda token: "a.b",
        lambda token: token.replace(".", "", 1),
        lambda token: " " + token,
        lambda token: token.replace(token[5], "é", 1),
    ],
)
async def test_other_shape_is_refused(bend: Any) -> None:
    assert await rule_that_refuses(bend(signed())) == "shape"


@pytest.mark.parametrize("payload", [b"[]", b'"x"', b"null", b"1", b"{", b"\xff", b"[" * 3000])
async def test_payload_that_is_not_an_object_is_refused(payload: bytes) -> None:
    assert await rule_that_refuses(signed_raw(HEADER, payload)) == "payload"


@pytest.mark.parametrize(
    "value", ["NaN", "Infinity", "-Infinity", "1e400", "true", '"9999999999"', "null", "[1]", "-1", "1e30", "9" * 400]
)
@pytest.mark.parametrize("name", ["exp", "iat", "nbf"])
async def test_time_that_is_not_a_number_is_refused(name: str, value: str) -> None:
    payload = json.dumps(claims(**{name: 123456})).replace("123456", value).encode()
    assert await rule_that_refuses(signed_raw(HEADER, payload)) in ("claims", "payload")


async def test_expired_by_a_second_is_expired() -> None:
    now = int(time.time())
    with pytest.raises(TokenExpired) as caught:
        await verifier().verify(signed(claims(iat=now - 10, exp=now - 1)))
    assert caught.value.metadata["expired_at"].endswith("Z")


@pytest.mark.parametrize("name", ["sub", "exp", "iss", "wlcg_ver", "aud", "iat", "jti"])
async def test_missing_claim_is_refused(name: str) -> None:
    assert await rule_that_refuses(signed(claims(**{name: None}))) == "claims"


@pytest.mark.parametrize("audience", ["https://other.example", AUDIENCE + "/", AUDIENCE.upper(), AUDIENCE[:-1]])
async def test_other_audience_is_refused(audience: str) -> None:
    assert await rule_that_refuses(signed(claims(aud=[audience]))) == "audience"


@pytest.mark.parametrize("audience", [[], {}, 1, [1], [AUDIENCE, 1]])
async def test_audience_of_another_type_is_refused(audience: object) -> None:
    assert await rule_that_refuses(signed_raw(HEADER, json.dumps(claims(aud=audience)).encode())) == "claims"


async def test_audience_list_with_ours_is_accepted() -> None:
    assert (await verifier().verify(signed(claims(aud=["https://other.example", AUDIENCE])))).subject == "alice"


async def test_wildcard_audience_is_accepted_only_where_configured() -> None:
    token = signed(claims(aud="https://wlcg.cern.ch/jwt/v1/any"))
    assert (await verifier().verify(token)).subject == "alice"
    assert await rule_that_refuses(token, accept_any_audience=False) == "audience"


@pytest.mark.parametrize("issuer", ["https://evil.example", ISSUER + "/", ISSUER.upper()])
async def test_unlisted_issuer_is_refused(issuer: str) -> None:
    assert await rule_that_refuses(signed(claims(iss=issuer))) == "issuer"


@pytest.mark.parametrize("name", ["iat", "nbf"])
async def test_token_from_the_future_is_refused_beyond_a_minute(name: str) -> None:
    now = int(time.time())
    assert (await verifier().verify(signed(claims(**{name: now + 50})))).subject == "alice"
    assert await rule_that_refuses(signed(claims(**{name: now + 3000}))) == "not_yet"


async def test_token_that_lives_too_long_is_refused() -> None:
    now = int(time.time())
    token = signed(claims(iat=now, exp=now + 6 * 3600 + 1))
    assert await rule_that_refuses(token) == "lifetime"
    assert (await verifier(max_lifetime=timedelta(hours=7)).verify(token)).subject == "alice"


@pytest.mark.parametrize("kind", ["ID+JWT", "dpop+jwt", "", 1, None])
async def test_other_token_type_is_refused(kind: object) -> None:
    header = json.dumps({"alg": "ES256", "kid": "ec", "typ": kind}).encode()
    assert await rule_that_refuses(signed_raw(header, json.dumps(claims()).encode())) == "type"


@pytest.mark.parametrize("mark", ["nonce", "at_hash", "c_hash"])
async def test_id_token_is_refused(mark: str) -> None:
    assert await rule_that_refuses(signed(claims(**{mark: "x"}))) == "type"


async def test_duplicate_key_is_refused_in_payload_and_header() -> None:
    payload = json.dumps(claims())[:-1] + ',"sub":"admin"}'
    assert await rule_that_refuses(signed_raw(HEADER, payload.encode())) == "payload"
    header = b'{"alg":"none","alg":"ES256","kid":"ec"}'
    assert await rule_that_refuses(signed_raw(header, json.dumps(claims()).encode())) == "header"


async def test_token_over_the_size_limit_is_refused_before_it_is_read() -> None:
    assert await rule_that_refuses(signed(claims(note="x" * 8192))) == "size"


@pytest.mark.parametrize("key_id", [None, "", 1, "x" * 257])
async def test_header_must_name_a_key(key_id: object) -> None:
    header = json.dumps({"alg": "ES256", "kid": key_id}).encode()
    assert await rule_that_refuses(signed_raw(header, json.dumps(claims()).encode())) == "key_id"


@pytest.mark.parametrize("key_id", ["../../etc/passwd", "' OR 1=1 --", "https://evil.example/key", "EC"])
async def test_key_id_is_only_looked_up(key_id: str) -> None:
    assert await rule_that_refuses(signed(kid=key_id)) == "key"


@pytest.mark.parametrize(("version", "accepted"), [("1.0", True), ("1.9", True), ("2.0", False), ("01.0", False)])
async def test_unknown_major_version_is_refused(version: str, accepted: bool) -> None:
    token = signed(claims(wlcg_ver=version))
    if accepted:
        assert (await verifier().verify(token)).subject == "alice"
    else:
        assert await rule_that_refuses(token) == "version"


@pytest.mark.parametrize("scope", ["storage.read", "storage.read:/vo/..", "compute.read storage.create:vo"])
async def test_bad_scope_path_makes_the_token_invalid(scope: str) -> None:
    assert await rule_that_refuses(signed(claims(scope=scope))) == "scope"


async def test_scope_list_is_refused() -> None:
    assert await rule_that_refuses(signed(claims(scope=["admin"]))) == "claims"


GROUPS: dict[str, Any] = {
    "roles": {"production-manager": ("compute.create", "storage.create:/vo/prod")},
    "group_roles": {"/hess/production": ("production-manager",)},
}


async def test_groups_grant_their_roles_capabilities() -> None:
    token = signed(claims(scope=None, **{"wlcg.groups": ["/hess", "/hess/production"]}))
    principal = await verifier(**GROUPS).verify(token)
    assert principal.roles == ("production-manager",)
    assert Capability("compute.create") in principal.capabilities


async def test_groups_are_ignored_when_any_capability_is_present() -> None:
    token = signed(claims(scope="compute.read", **{"wlcg.groups": ["/hess/production"]}))
    assert (await verifier(**GROUPS).verify(token)).capabilities == (Capability("compute.read"),)


async def test_child_group_does_not_mean_its_parent() -> None:
    token = signed(claims(scope=None, **{"wlcg.groups": ["/hess/production/night"]}))
    assert (await verifier(**GROUPS).verify(token)).capabilities == ()


async def test_unknown_claims_grant_nothing() -> None:
    token = signed(claims(scope="openid", roles=["admin"], admin=True))
    assert (await verifier().verify(token)).capabilities == ()


@pytest.mark.parametrize(
    ("subject", "scope", "kind"),
    [
        ("service:catalog", "compute.read", Kind.SERVICE),
        ("pilot:1", "compute.read", Kind.PILOT),
        ("job:1", "compute.read", Kind.JOB),
        ("host:se.example.org", "host.auth", Kind.HOST),
        ("host:se.example.org", "compute.read", Kind.USER),
        ("other:1", "compute.read", Kind.USER),
        ("host", "host.auth", Kind.USER),
    ],
)
async def test_subject_says_the_kind(subject: str, scope: str, kind: Kind) -> None:
    assert (await verifier().verify(signed(claims(sub=subject, scope=scope)))).kind is kind


async def test_verdict_is_kept_until_the_token_expires() -> None:
    clock = Clock(time.time())
    checking = verifier(clock)
    token = signed(claims(exp=int(clock.now) + 100))
    principal = await checking.verify(token)
    assert checking.known(token) is principal
    clock.now += 101
    assert checking.known(token) is None
    with pytest.raises(TokenExpired):
        await checking.verify(token)


async def test_verdict_is_kept_for_five_minutes_at_most() -> None:
    clock = Clock(time.time())
    checking = verifier(clock)
    token = signed()
    await checking.verify(token)
    clock.now += 299
    assert checking.known(token) is not None
    clock.now += 2
    assert checking.known(token) is None


async def test_verdicts_are_forgotten_on_request() -> None:
    checking = verifier()
    token = signed()
    await checking.verify(token)
    checking.forget()
    assert checking.known(token) is None


async def test_refusal_names_the_rule_and_not_the_token() -> None:
    token = signed(claims(aud="https://other.example"))
    with pytest.raises(TokenRefused) as caught:
        await verifier().verify(token)
    assert caught.value.metadata == {"rule": "audience"}
    assert token not in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["\ud800", 10**400, "a\nb"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
SCOPES = st.text("storage.read:/%2e\ud800 \u0301é", max_size=30).map(lambda text: "storage.read:/" + text)


@given(st.sampled_from([*claims(), "wlcg.groups", "nbf"]), JSON)
async def test_any_value_of_a_claim_is_accepted_or_refused_but_never_breaks_the_verifier(
    name: str, value: object
) -> None:
    await _judged(claims() | {name: value})


@given(SCOPES)
async def test_any_scope_is_accepted_or_refused_but_never_breaks_the_verifier(scope: str) -> None:
    await _judged(claims(scope=scope))


async def _judged(payload: Mapping[str, Any]) -> None:
    token = signed_raw(HEADER, json.dumps(payload).encode())
    with suppress(Refused):
        assert (await verifier().examine(token)).subject.isprintable()


@given(st.binary(max_size=60), st.binary(max_size=60))
async def test_any_bytes_are_refused(header: bytes, payload: bytes) -> None:
    with pytest.raises(Refused):
        await verifier().examine(signed_raw(header, payload))
