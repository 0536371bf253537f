"""Bearer tokens in files, found as WLCG Bearer Token Discovery says."""

import base64
import binascii
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from khomas.kit.credentials.interface import Credential, CredentialPlugin, RenewalFailed
from khomas.kit.credentials.options import Options
from khomas.kit.credentials.secret_file import SecretFile, Unreadable

# Year 5138: datetime goes no further than the token may say.
_LATEST = 1e11


class BearerOptions(Options):
    """Where the token is."""

    # Empty = $BEARER_TOKEN_FILE, $XDG_RUNTIME_DIR/bt_u$UID, /tmp/bt_u$UID. A token in $BEARER_TOKEN cannot be renewed
    # while the service runs, and is not looked at.
    file: Path | None = None
    # A token that is no JWT is believed to last so long after it was written.
    opaque_lifetime: timedelta = timedelta(hours=1)


class BearerToken:
    """A token in a file."""

    kind = "bearer"

    def __init__(self, name: str, options: BearerOptions, environment: Mapping[str, str] = os.environ) -> None:
        self.name = name
        self._options = options
        self._environment = environment
        remedy = options.told or "write a new token into its file"
        self._file = SecretFile(self._read, remedy, group_readable=options.group_readable)

    @property
    def renewable(self) -> bool:
        """Whether there is a command for it."""
        return bool(self._options.renew_command)

    def status(self) -> Credential:
        """Read subject, times and scopes of the token, without verifying it: that is for who gets it."""
        return self._file.look(self._path())

    def files(self) -> Mapping[str, Path]:
        """The file, as `token`."""
        return {"token": self._path()}

    def environment(self) -> Mapping[str, str]:
        """BEARER_TOKEN_FILE."""
        return {"BEARER_TOKEN_FILE": str(self._path())}

    async def renew(self) -> None:
        """Run the command that the settings name."""
        if not self.renewable:
            raise RenewalFailed("no renew_command is set")
        await self._options.run_renew_command()

    def _path(self) -> Path:
        if self._options.file is not None:
            return self._options.file
        if named := self._environment.get("BEARER_TOKEN_FILE"):
            return Path(named)
        name = f"bt_u{os.geteuid()}"
        runtime = self._environment.get("XDG_RUNTIME_DIR")
        # The second path is the specification's; the owner is checked because anybody may write there.
        usual = [Path(runtime, name)] if runtime else []
        usual.append(Path("/tmp", name))  # noqa: S108
        return next((path for path in usual if path.exists()), usual[0])

    def _read(self, content: bytes, found: os.stat_result) -> Credential:
        token = content.strip(b" \t\n\v\f\r")
        if not token or len(token.split()) != 1:
            raise Unreadable("it holds no token")
        renews = self.renewable or self._options.kept_fresh
        claims = _claims(token)
        if claims is None:
            written = datetime.fromtimestamp(found.st_mtime, UTC)
            return Credential(True, "", written, written + self._options.opaque_lifetime, renews=renews)
        expires = _moment(claims.get("exp"))
        if expires is None:
            raise Unreadable("the token does not say when it expires")
        scope = claims.get("scope")
        return Credential(
            present=True,
            subject=str(claims.get("sub", "")),
            not_before=_moment(claims.get("nbf")) or _moment(claims.get("iat")),
            expires=expires,
            renews=renews,
            can=tuple(scope.split()) if isinstance(scope, str) else (),
        )


def _claims(token: bytes) -> dict[str, Any] | None:
    """What a JWT says; None when it is none."""
    parts = token.split(b".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + b"=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return None
    return claims if isinstance(claims, dict) else None


def _moment(value: object) -> datetime | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _LATEST:
        return None
    return datetime.fromtimestamp(value, UTC)


plugin = CredentialPlugin("bearer", BearerOptions, BearerToken)
