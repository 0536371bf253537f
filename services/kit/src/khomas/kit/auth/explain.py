"""Says what a token allows, or which rule refuses it: `khomas auth explain`."""

import argparse
import asyncio
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from khomas.kit.auth import token as tokens
from khomas.kit.auth.issuer import DevelopmentIssuer
from khomas.kit.auth.keys import KeysUnavailable
from khomas.kit.auth.token import Refused
from khomas.kit.auth.tokens import discover
from khomas.kit.auth.verifier import Verifier
from khomas.kit.config import AuthSettings, ConfigError

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


async def explain(token: str, verifier: Verifier) -> dict[str, Any]:
    """Return the verdict on a token, with the first rule that refuses it and what to do."""
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
    except KeysUnavailable as error:
        return {"accepted": False, "rule": "keys_unavailable", "detail": str(error), "remedy": "Try again later."}
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
    """Print the verdict as JSON; the exit code is 0 for an accepted token, 1 for a refused one."""
    parser = argparse.ArgumentParser(prog="khomas auth explain", description=explain.__doc__)
    parser.add_argument("--state", type=Path, help="state folder of `khomas up`: judge as that installation")
    parser.add_argument("--token-file", type=Path, help="file with the token; else it is discovered as usual")
    options = parser.parse_args(arguments)
    try:
        verdict = asyncio.run(explain(_token(options.token_file), _verifier(options.state)))
    except (ConfigError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(json.dumps(verdict, indent=2) + "\n")
    return 0 if verdict["accepted"] else 1


def _token(file: Path | None) -> str:
    token = file.read_text().strip() if file is not None else discover(os.environ)
    if token is None:
        raise ConfigError("No token was found: set BEARER_TOKEN or BEARER_TOKEN_FILE, or give --token-file.")
    return token


def _verifier(state: Path | None) -> Verifier:
    if state is None:
        return Verifier([], AuthSettings())
    if not (state / "issuer.json").exists():
        raise ConfigError(f"{state} is not the state folder of an installation.")
    issuer = DevelopmentIssuer.open(state, (state / "vo").read_text())
    return Verifier([issuer.trusted], AuthSettings(audiences=(issuer.audience,)))
