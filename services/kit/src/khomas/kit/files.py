"""Writes small files so that a reader sees all of it or nothing."""

import os
import tempfile
from pathlib import Path


def write_atomically(file: Path, content: str, mode: int = 0o644) -> None:
    """Replace a file in one step, durable when this returns."""
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w") as stream:
            os.fchmod(stream.fileno(), mode)
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
