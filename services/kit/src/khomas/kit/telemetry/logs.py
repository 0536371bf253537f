"""Structured logs: one JSON object a line, an event with fields, never a token."""

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import TextIO

from khomas.kit.telemetry.trace import current_trace

# Anything that begins like a JWT, and credentials in addresses.
_SECRETS = re.compile(r"eyJ[A-Za-z0-9_.-]*|(?<=://)[^/\s:@\"]+:[^/\s@\"]+(?=@)")
# Libraries that write several lines about every connection, or every migration that is not needed.
_TALKATIVE = ("asyncssh", "alembic.runtime")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def redacted(text: str) -> str:
    """Return a text without tokens and passwords."""
    return _SECRETS.sub("[redacted]", text)


class JsonFormatter(logging.Formatter):
    """Format a record; what `extra` holds become fields beside `event`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line of JSON."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "event": record.getMessage(),
            "logger": record.name,
        }
        if (trace := current_trace()) is not None:
            line |= {"trace_id": trace.trace_id, "span_id": trace.span_id}
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return redacted(json.dumps(line, default=str, ensure_ascii=False))


def log_to(stream: TextIO = sys.stderr, level: str = "INFO") -> None:
    """Send all logs of this process to a stream."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.getLogger().level + 10)
