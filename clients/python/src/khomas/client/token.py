"""Where the bearer token is: WLCG Bearer Token Discovery 1.0, precisely that and nothing more."""

import os
from pathlib import Path

# C99 isspace.
_SPACE = " \t\n\v\f\r"


def find_token() -> str:
    """Return the token, or "" if there is none in any of the four places."""
    if (token := os.environ.get("BEARER_TOKEN", "").strip(_SPACE)) != "":
        return token
    if path := os.environ.get("BEARER_TOKEN_FILE"):
        return _read(Path(path))
    name = f"bt_u{os.geteuid()}"
    folders = (os.environ.get("XDG_RUNTIME_DIR"), "/tmp")  # noqa: S108  the specification's place
    for folder in folders:
        if folder and (path_ := Path(folder) / name).exists():
            return _read(path_)
    return ""


def _read(path: Path) -> str:
    try:
        return path.read_text().strip(_SPACE)
    except OSError:
        return ""
