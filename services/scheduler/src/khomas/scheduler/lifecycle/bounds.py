"""How far numbers of a spec go, whatever it says: a moment or a size beyond cannot be written down."""

from datetime import timedelta

from google.protobuf.duration_pb2 import Duration

# Ten years.
LONGEST = timedelta(days=3650)
# Of memory and time in all, after any number of failures.
MOST_GROWTH = 1000.0
_MOST_BYTES = 1 << 60


def span(duration: Duration) -> timedelta:
    """So long, at most ten years."""
    return duration.ToTimedelta() if duration.seconds < LONGEST.total_seconds() else LONGEST


def grown(factor: float, by: float = 1.0) -> float:
    """A factor that has grown."""
    product = factor * by
    return product if product < MOST_GROWTH else MOST_GROWTH


def grown_bytes(size: int, factor: float) -> int:
    """Bytes that a job gets after failures."""
    return min(int(size * grown(factor)), _MOST_BYTES)


def grown_span(duration: Duration, factor: float) -> timedelta:
    """Time that a job gets after failures."""
    return span(duration) * grown(factor)
