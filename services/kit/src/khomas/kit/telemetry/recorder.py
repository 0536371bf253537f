"""What is recorded of every call. Costs nothing until it is asked for."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import grpc

from khomas.kit.telemetry.trace import HEADER, Trace, trace_of

# Values with their attributes, as they are now.
Readings = Callable[[], Iterable[tuple[float, Mapping[str, str]]]]
# Name, unit, description, and what is asked when somebody looks.
Gauge = Callable[[str, str, str, Readings], None]


def no_gauge(name: str, unit: str, description: str, read: Readings) -> None:
    """Show nothing to nobody."""


class Span(Protocol):
    """One call while it runs."""

    trace: Trace

    def end(self, code: grpc.StatusCode) -> None:
        """Record how the call ended."""


class Recorder(Protocol):
    """Sees the calls of a process."""

    def server_call(self, method: str, metadata: Mapping[str, str | bytes]) -> Span:
        """Begin a call that we answer."""

    def gauge(self, name: str, unit: str, description: str, read: Readings) -> None:
        """Show figures that are read when somebody looks."""


@dataclass(slots=True)
class _PlainSpan:
    trace: Trace

    def end(self, code: grpc.StatusCode) -> None:
        """Record nothing."""


class PlainRecorder:
    """Keeps traces together and records nothing."""

    def server_call(self, method: str, metadata: Mapping[str, str | bytes]) -> Span:
        """Begin a call."""
        header = metadata.get(HEADER)
        return _PlainSpan(trace_of(header if isinstance(header, str) else None))

    def gauge(self, name: str, unit: str, description: str, read: Readings) -> None:
        """Show nothing."""
