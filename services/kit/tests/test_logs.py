"""Structured logs."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from khomas.kit.telemetry.logs import log_to
from khomas.kit.telemetry.trace import enter_trace, new_trace
from khomas.kit.testing import serve
from khomas.kit.testing.echo import Reply, Request, echo_service, method


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    text = io.StringIO()
    log_to(text)
    yield text
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_library_that_tells_of_every_connection_is_heard_when_it_warns(stream: io.StringIO) -> None:
    logging.getLogger("asyncssh.sftp").info("Channel closed")
    logging.getLogger("asyncssh.sftp").warning("Host key has changed")
    logging.getLogger("khomas.test").info("file.found")
    assert [line["event"] for line in lines(stream)] == ["Host key has changed", "file.found"]


async def test_event_carries_its_fields_and_its_trace(stream: io.StringIO) -> None:
    trace = new_trace()
    enter_trace(trace)
    logging.getLogger("khomas.test").warning("file.lost", extra={"name_of_file": "/vo/x", "size_bytes": 7})
    [line] = lines(stream)
    assert (line["event"], line["level"], line["name_of_file"], line["size_bytes"]) == (
        "file.lost",
        "WARNING",
        "/vo/x",
        7,
    )
    assert (line["trace_id"], line["span_id"]) == (trace.trace_id, trace.span_id)


@pytest.mark.parametrize(
    ("secret", "text"),
    [
        ("eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln", "token eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln refused"),
        ("hunter2", "cannot reach postgresql+asyncpg://khomas:hunter2@db/catalog"),
    ],
)
def test_secrets_are_redacted_wherever_they_stand(stream: io.StringIO, secret: str, text: str) -> None:
    log = logging.getLogger("khomas.test")
    log.error("%s", text, extra={"field": text})
    log.error("failed", exc_info=RuntimeError(text))
    assert len(lines(stream)) == 2
    assert secret not in stream.getvalue()


async def test_no_token_is_logged_by_calls_that_fail(stream: io.StringIO) -> None:
    async def answer(_: Request) -> Reply:
        raise RuntimeError(served.token())

    async with serve(echo_service(answer)) as served:
        for channel in (served.channel, served.channel_with(served.token(audience="other"))):
            with pytest.raises(Exception, match="StatusCode"):
                await method(channel, "Echo")(Request())
    assert "call.failed" in stream.getvalue()
    assert "eyJ" not in stream.getvalue()
