"""What a walk meets."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Found:
    """A file met on the way; with an error it could not even be looked at."""

    path: str
    size_bytes: int
    modify_time: float
    error: str = ""
