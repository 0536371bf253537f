"""The W3C trace context of what is being done, kept whether or not spans are exported."""

import random
import re
from contextvars import ContextVar
from dataclasses import dataclass

HEADER = "traceparent"
_FORMAT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})\Z")


@dataclass(frozen=True, slots=True)
class Trace:
    """Position in a trace."""

    trace_id: str
    span_id: str
    sampled: bool = False

    @property
    def traceparent(self) -> str:
        """Return the W3C header that makes somebody else's work part of this trace."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


_current: ContextVar[Trace | None] = ContextVar("khomas_trace", default=None)


def new_trace() -> Trace:
    """Return a fresh trace."""
    # Identifiers, not secrets: the fast generator is enough.
    return Trace(f"{random.getrandbits(128) | 1:032x}", f"{random.getrandbits(64) | 1:016x}")


def trace_of(traceparent: str | None) -> Trace:
    """Return the trace that a caller is in, or a fresh one."""
    match = _FORMAT.match(traceparent) if traceparent else None
    if match is None or match[1] == "0" * 32 or match[2] == "0" * 16:
        return new_trace()
    return Trace(match[1], match[2], sampled=bool(int(match[3], 16) & 1))


def enter_trace(trace: Trace) -> None:
    """Make this the trace of the current task and of the tasks that it starts."""
    _current.set(trace)


def current_trace() -> Trace | None:
    """Return the trace of the current task."""
    return _current.get()


def current_trace_id() -> str:
    """Return the trace id of the current task, 32 hex digits, or "" outside of a trace."""
    trace = _current.get()
    return trace.trace_id if trace is not None else ""


def current_traceparent() -> str:
    """Return the W3C header of the current task, or "" outside of a trace."""
    trace = _current.get()
    return trace.traceparent if trace is not None else ""
