"""What is special of one child of an array."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from khomas.kit.expressions import Scalar


@dataclass(frozen=True, slots=True)
class Child:
    """What is special of one child."""

    # Values for "{key}".
    values: Mapping[str, Scalar] = field(default_factory=dict)
    # Appended to the arguments of the spec.
    arguments: Sequence[str] = ()
    # Added to the environment.
    env: Mapping[str, str] = field(default_factory=dict)
    # Input files instead of those of the spec: (position of the input, LFN).
    files: Sequence[tuple[int, str]] | None = None
