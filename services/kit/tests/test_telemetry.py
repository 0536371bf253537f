"""Spans and metrics of calls, judged by a collector and by the scraped text."""

import asyncio
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

from khomas.kit.config import TelemetrySettings
from khomas.kit.errors import NotFound
from khomas.kit.hosting import reserved_socket
from khomas.kit.telemetry.setup import recording
from khomas.kit.testing import Served, serve
from khomas.kit.testing.echo import Reply, Request, echo_service, method

PARENT = "0af7651916cd43dd8448eb211c80319c"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the spans that are sent to it."""

    def __init__(self) -> None:
        self.spans: list[trace_pb2.Span] = []

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802  # gRPC's name
        self.spans += [
            span for resource in request.resource_spans for scope in resource.scope_spans for span in scope.spans
        ]
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def collector() -> Iterator[tuple[str, Collector]]:
    server = grpc.server(ThreadPoolExecutor(2))
    kept = Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(kept, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", kept
    server.stop(0).wait()


def settings(**values: Any) -> TelemetrySettings:
    return TelemetrySettings(otlp_insecure=True, **values)


async def answer(request: Request) -> Reply:
    if request.cursor == "missing":
        raise NotFound(name="x")
    if request.cursor == "broken":
        raise RuntimeError
    return Reply()


async def call(served: Served, cursor: str, flags: str = "01") -> None:
    metadata = [("traceparent", f"00-{PARENT}-b7ad6b7169203331-{flags}")]
    try:
        await method(served.channel, "Echo")(Request(cursor=cursor), metadata=metadata)
    except grpc.aio.AioRpcError:
        return


async def test_spans_hang_below_the_callers(collector: tuple[str, Collector]) -> None:
    endpoint, kept = collector
    with recording("echo", settings(otlp_endpoint=endpoint)) as recorder:
        async with serve(echo_service(answer), recorder=recorder) as served:
            await call(served, "")
            await call(served, "broken")
    fine, broken = kept.spans
    assert fine.trace_id.hex() == PARENT
    assert fine.parent_span_id.hex() == "b7ad6b7169203331"
    assert fine.name == "/khomas.kit.testing.v1.EchoService/Echo"
    assert fine.status.code != trace_pb2.Status.STATUS_CODE_ERROR
    assert broken.status.code == trace_pb2.Status.STATUS_CODE_ERROR


async def test_unsampled_caller_makes_no_span(collector: tuple[str, Collector]) -> None:
    endpoint, kept = collector
    with recording("echo", settings(otlp_endpoint=endpoint, trace_ratio=1.0)) as recorder:
        async with serve(echo_service(answer), recorder=recorder) as served:
            await call(served, "", flags="00")
    assert kept.spans == []


async def test_calls_are_counted_by_method_and_status() -> None:
    with reserved_socket("127.0.0.1:0") as bound:
        listen = f"127.0.0.1:{bound.getsockname()[1]}"
    with recording("echo", settings(metrics_listen=listen)) as recorder:
        async with serve(echo_service(answer), recorder=recorder) as served:
            for cursor in ("", "", "missing"):
                await call(served, cursor)
        text = await asyncio.to_thread(_scraped, f"http://{listen}/metrics")
    counts = [line for line in text.splitlines() if line.startswith("rpc_server_call_duration_seconds_count")]
    assert [line.rpartition(" ")[2] for line in counts if '"OK"' in line] == ["2.0"]
    assert [line.rpartition(" ")[2] for line in counts if '"NOT_FOUND"' in line] == ["1.0"]
    active = next(line for line in text.splitlines() if line.startswith("rpc_server_active_calls{"))
    assert active.endswith(" 0.0")


def _scraped(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310  # our own loopback address
        return str(answer.read().decode())


def test_opentelemetry_sdk_is_not_imported_until_wanted() -> None:
    program = "import sys, khomas.kit.up, khomas.kit.run; sys.exit('opentelemetry.sdk' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
