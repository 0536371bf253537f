"""The unprivileged user that jobs of test beds run as."""

import pwd
import subprocess
from pathlib import Path

from tests.testbeds import install

NAME = "khomas-prod"
_UID = 5301


def unprivileged(name: str = NAME, uid: int = _UID) -> pwd.struct_passwd:
    """The user, made once; without a password, but not locked, so that a key lets it in."""
    try:
        return pwd.getpwnam(name)
    except KeyError:
        pass
    with install.locked("users"):
        home = Path("/home") / name
        subprocess.run(
            ["useradd", "--uid", str(uid), "--user-group", "--create-home", "--home-dir", str(home), name],
            check=True,
            timeout=30,
        )
        subprocess.run(["usermod", "--shell", "/bin/bash", "--password", "*", name], check=True, timeout=30)
    return pwd.getpwnam(name)
