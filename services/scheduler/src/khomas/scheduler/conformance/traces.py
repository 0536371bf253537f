"""What jobs leave on a node that is this machine."""

import subprocess
from collections.abc import Sequence
from pathlib import Path


def traces(argument: str, folders: Sequence[str] = ()) -> list[str]:
    """Processes with this argument, and what is in these folders."""
    lives = subprocess.run(["pgrep", "-f", argument], check=False, stdout=subprocess.PIPE, text=True)
    return [*lives.stdout.split(), *(str(path) for folder in folders for path in Path(folder).rglob("*"))]
