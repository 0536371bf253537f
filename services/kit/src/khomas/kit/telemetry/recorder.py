"""What is recorded of every call. Costs nothing until it is asked for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import grpc

from khomas.kit.telemetry.trace import HEADER, Trace, trace_of


class Span(Protocol):
    """One call while it runs."""

    trace: Trace

    def end(self, code: grpc.StatusCode) -> None:
        """Record how the call ended."""


class Recorder(Protocol):
    """Sees the calls of a process."""

    def server_call(self, method: str, metadata: Mapping[str, str | bytes]) -> Span:
        """Begin a call that we answer."""


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
