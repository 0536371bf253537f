"""Spans and metrics of calls by OpenTelemetry."""

import time
from collections.abc import Callable, Iterable, Mapping

import grpc
from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Histogram, Meter, Observation, UpDownCounter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import CollectorRegistry, start_http_server

from khomas.kit.config import TelemetrySettings
from khomas.kit.telemetry.recorder import Readings, Span
from khomas.kit.telemetry.trace import HEADER, Trace

_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_PROPAGATOR = TraceContextTextMapPropagator()
_OUR_FAULT = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS})


class _Call:
    def __init__(self, span: trace.Span, method: str, duration: Histogram, active: UpDownCounter) -> None:
        at = span.get_span_context()
        self.trace = Trace(f"{at.trace_id:032x}", f"{at.span_id:016x}", at.trace_flags.sampled)
        self._span = span
        self._method = method
        self._duration = duration
        self._active = active
        self._began = time.perf_counter()
        active.add(1, {"rpc.method": method})

    def end(self, code: grpc.StatusCode) -> None:
        """Record duration and status."""
        self._active.add(-1, {"rpc.method": self._method})
        attributes = {"rpc.method": self._method, "rpc.response.status_code": code.name}
        self._duration.record(time.perf_counter() - self._began, attributes)
        self._span.set_attribute("rpc.response.status_code", code.name)
        if code in _OUR_FAULT:
            self._span.set_status(trace.StatusCode.ERROR)
        self._span.end()


class OtelRecorder:
    """Records a span and two metrics a call."""

    def __init__(self, tracer: trace.Tracer, meter: Meter, duration: Histogram, active: UpDownCounter) -> None:
        self._tracer = tracer
        self._meter = meter
        self._duration = duration
        self._active = active

    def server_call(self, method: str, metadata: Mapping[str, str | bytes]) -> Span:
        """Begin a call; spans that its handler makes hang below it."""
        header = metadata.get(HEADER)
        parent = _PROPAGATOR.extract({HEADER: header} if isinstance(header, str) else {})
        attributes = {"rpc.system.name": "grpc", "rpc.method": method.removeprefix("/")}
        span = self._tracer.start_span(method, parent, trace.SpanKind.SERVER, attributes)
        context.attach(trace.set_span_in_context(span, parent))
        return _Call(span, method, self._duration, self._active)

    def gauge(self, name: str, unit: str, description: str, read: Readings) -> None:
        """Show figures that are read whenever metrics are collected."""

        def observe(_: CallbackOptions) -> Iterable[Observation]:
            return [Observation(value, attributes) for value, attributes in read()]

        self._meter.create_observable_gauge(name, [observe], unit, description)


def open_recorder(service: str, settings: TelemetrySettings) -> tuple[OtelRecorder, Callable[[], None]]:
    """Return a recorder and what flushes and closes it."""
    resource = Resource.create({"service.name": f"khomas-{service}"})
    tracers = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(settings.trace_ratio)), resource=resource, shutdown_on_exit=False
    )
    if settings.otlp_endpoint:
        exporter = OTLPSpanExporter(endpoint=settings.otlp_endpoint, insecure=settings.otlp_insecure)
        tracers.add_span_processor(BatchSpanProcessor(exporter))
    registry = CollectorRegistry()
    meters = MeterProvider([PrometheusMetricReader(registry=registry)], resource, shutdown_on_exit=False)
    closers: list[Callable[[], object]] = [tracers.shutdown, meters.shutdown]
    if settings.metrics_listen:
        closers.append(_serve_metrics(settings.metrics_listen, registry))
    meter = meters.get_meter("khomas.kit")
    recorder = OtelRecorder(
        tracers.get_tracer("khomas.kit"),
        meter,
        meter.create_histogram(
            "rpc.server.call.duration", "s", "Duration of calls", explicit_bucket_boundaries_advisory=_BUCKETS
        ),
        meter.create_up_down_counter("rpc.server.active_calls", "{call}", "Calls in flight"),
    )
    return recorder, lambda: _close(closers)


def _serve_metrics(listen: str, registry: CollectorRegistry) -> Callable[[], object]:
    host, _, port = listen.rpartition(":")
    server, thread = start_http_server(int(port), host, registry)

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return close


def _close(closers: list[Callable[[], object]]) -> None:
    for close in closers:
        close()
