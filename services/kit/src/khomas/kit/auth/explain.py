"""Says what a token allows, or which rule refuses it: `khomas auth explain`."""

import argparse
import asyncio
import json
import os
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from khomas.kit.auth import token as tokens
from khomas.kit.auth.issuer import DevelopmentIssuer
from khomas.kit.auth.keys import KeysUnavailable
from khomas.kit.auth.token import Refused
from khomas.kit.auth.tokens import discover
from khomas.kit.auth.verifier import Issuer, Verifier
from khomas.kit.config import AuthSettings, ConfigError
from khomas.kit.up import default_state

_REMEDIES = {
    "expired": "Get a new token.",
    "not_yet": "Compare the clocks of this machine and the issuer.",
    "audience": "Ask the issuer for a token whose audience is this installation.",
    "issuer": "Ask the operator to trust the issuer, or use a token of one that is trusted.",
    "scope": "Ask for scopes with an absolute path, such as storage.read:/vo/data.",
    "signature": "The token was altered or cut on its way; get it again.",
    "key": "The issuer changed its keys, or the token is not its own; get a new token.",
    "type": "Present the access token, not the ID token.",
}
_ABOUT = "Say what a token allows, or the first rule that refuses it and what to do."
_JUDGES = """Without options the judge is the `khomas up` that issued the token, if its state folder is found here. What
groups may do is in the settings of a service: `khomas-<service> explain-token` judges by them."""
_NO_JUDGE = """Cannot judge: nothing here tells for which installation the token is. Give --state of its `khomas up`, or
--issuer and --audience as its operator names them."""


async def explain(token: str, verifier: Verifier) -> dict[str, Any]:
    """Return the verdict on a token, with the first rule that refuses it and what to do.

    Without the keys of its issuer there is none: raises KeysUnavailable.
    """
    try:
        principal = await verifier.examine(token)
    except Refused as refusal:
        remedy = _REMEDIES.get(refusal.rule, "Get a token of a trusted issuer in the WLCG profile.")
        return {
            "accepted": False,
            "rule": refusal.rule,
            "detail": refusal.detail,
            "remedy": remedy,
            "claims": _claims(token),
        }
    return {
        "accepted": True,
        "vo": principal.vo,
        "issuer": principal.issuer,
        "subject": principal.subject,
        "kind": principal.kind.value,
        "groups": list(principal.groups),
        "roles": list(principal.roles),
        "capabilities": [str(capability) for capability in principal.capabilities],
        "token_id": principal.token_id,
        "expires_at": principal.expires_at.isoformat(),
    }


def _claims(token: str) -> dict[str, Any]:
    """Return what the token says of itself, as far as it can be read; none of it is proven."""
    try:
        claims = tokens.read(token)
    except Refused:
        return {}
    return {
        "issuer": claims.issuer,
        "subject": claims.subject,
        "audiences": list(claims.audiences),
        "scopes": list(claims.scopes),
        "expires_at": datetime.fromtimestamp(claims.expires_at, UTC).isoformat(),
    }


def main(arguments: list[str] | None = None) -> int:
    """Print the verdict as JSON; the exit code is 0 for an accepted token, 1 for a refused one, 2 without a verdict."""
    parser = argparse.ArgumentParser(prog="khomas auth explain", description=_ABOUT, epilog=_JUDGES)
    parser.add_argument("--state", type=Path, metavar="FOLDER", help="judge as the `khomas up` with this state folder")
    parser.add_argument("--issuer", metavar="URL", help="judge as an installation that trusts this issuer")
    parser.add_argument("--audience", action="append", metavar="NAME", help="with --issuer: what tokens call it")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="file with the token; else it is discovered")
    options = parser.parse_args(arguments)
    if bool(options.issuer) != bool(options.audience) or (options.issuer and options.state):
        parser.error("give --state, or --issuer with --audience")
    try:
        token = found_token(options.token_file)
        with tempfile.TemporaryDirectory(prefix="khomas-") as keys:
            return judge(token, _verifier(options, token, Path(keys)))
    except (ConfigError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2


def judge(token: str, verifier: Verifier) -> int:
    """Print the verdict and return the exit code for it."""
    try:
        verdict = asyncio.run(explain(token, verifier))
    except KeysUnavailable as error:
        raise ConfigError(f"Cannot judge: {error}. Can the issuer be reached from here?") from error
    sys.stdout.write(json.dumps(verdict, indent=2) + "\n")
    return 0 if verdict["accepted"] else 1


def found_token(file: Path | None = None) -> str:
    """Return the token of a file, or the one that is discovered."""
    token = file.read_text().strip() if file is not None else discover(os.environ)
    if token is None:
        raise ConfigError("No token was found: set BEARER_TOKEN or BEARER_TOKEN_FILE, or give --token-file.")
    return token


def _verifier(options: argparse.Namespace, token: str, keys: Path) -> Verifier:
    if options.issuer:
        from khomas.kit.auth.jwks import RemoteKeys

        trusted = Issuer(options.issuer, "", RemoteKeys(options.issuer, keys))
        return Verifier([trusted], AuthSettings(audiences=tuple(options.audience)))
    if options.state:
        return _trusting(_issuer_of(options.state))
    return _issuing(token, options.token_file or os.environ.get("BEARER_TOKEN_FILE"))


def _issuing(token: str, file: Path | str | None) -> Verifier:
    """Find the installation that issued a token: others could only say that it is not theirs."""
    try:
        issuer = tokens.read(token).issuer
    except Refused:
        return Verifier([], AuthSettings())  # nobody accepts it, and why does not depend on who judges
    for state in (*([Path(file).parent] if file else []), default_state()):
        if (state / "issuer.json").exists() and (found := _issuer_of(state)).url == issuer:
            return _trusting(found)
    raise ConfigError(_NO_JUDGE)


def _issuer_of(state: Path) -> DevelopmentIssuer:
    if not (state / "issuer.json").exists():
        raise ConfigError(f"{state} is not the state folder of an installation.")
    return DevelopmentIssuer.open(state, (state / "vo").read_text())


def _trusting(issuer: DevelopmentIssuer) -> Verifier:
    return Verifier([issuer.trusted], AuthSettings(audiences=(issuer.audience,)))
