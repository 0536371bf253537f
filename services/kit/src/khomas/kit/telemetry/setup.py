"""Chooses the recorder of a process; OpenTelemetry is imported only where it is asked for."""

from collections.abc import Iterator
from contextlib import contextmanager

from khomas.kit.config import TelemetrySettings
from khomas.kit.telemetry.recorder import PlainRecorder, Recorder


@contextmanager
def recording(service: str, settings: TelemetrySettings) -> Iterator[Recorder]:
    """Yield the recorder that the settings want, and flush it at the end."""
    if not settings.otlp_endpoint and not settings.metrics_listen:
        yield PlainRecorder()
        return
    from khomas.kit.telemetry.otel import open_recorder

    recorder, close = open_recorder(service, settings)
    try:
        yield recorder
    finally:
        close()
