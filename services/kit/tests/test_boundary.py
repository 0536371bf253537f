"""Every call shape passes policy, validation and error translation; over the wire."""

import asyncio
import errno
import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from khomas.kit.boundary.call import current_call
from khomas.kit.boundary.status import info_of, reason_of, received_status
from khomas.kit.channel import ServiceChannel, open_channel
from khomas.kit.errors import EtagMismatch, NotFound
from khomas.kit.telemetry.trace import current_trace_id
from khomas.kit.testing import Served, serve
from khomas.kit.testing.auth import assert_refuses_bad_tokens
from khomas.kit.testing.echo import DESCRIPTOR, Reply, Request, echo_service, method

SHAPES = ["Echo", "Repeat", "Join", "Chat"]


async def call(channel: grpc.aio.Channel, name: str, *requests: Request, **options: Any) -> list[str]:
    """Call a method of any shape and return the cursors that it answers."""
    many = name in ("Join", "Chat")
    started = method(channel, name)(_stream(requests) if many else requests[0], **options)
    if name in ("Repeat", "Chat"):
        return [reply.cursor async for reply in started]
    return [(await started).cursor]


async def _stream(requests: tuple[Request, ...]) -> AsyncIterator[Request]:
    for request in requests:
        yield request


async def refusal(channel: grpc.aio.Channel, name: str, *requests: Request, **options: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, name, *requests, **options)
    return caught.value


class NoToken:
    def token(self) -> str:
        return ""


def raising(error: Exception) -> Any:
    async def answer(_: Request) -> Reply:
        raise error

    return echo_service(answer)


@pytest.fixture
async def echo() -> AsyncIterator[Served]:
    async with serve(echo_service()) as served:
        yield served


@pytest.mark.parametrize(
    ("name", "answer"), [("Echo", ["a"]), ("Repeat", ["a", "tester"]), ("Join", ["a"]), ("Chat", ["a"])]
)
async def test_each_shape_answers(echo: Served, name: str, answer: list[str]) -> None:
    assert await call(echo.channel, name, Request(cursor="a", until_now=True)) == answer


async def test_streams_carry_many_messages_both_ways(echo: Served) -> None:
    requests = [Request(cursor=letter) for letter in "abc"]
    assert await call(echo.channel, "Join", *requests) == ["abc"]
    assert await call(echo.channel, "Chat", *requests) == ["a", "b", "c"]


async def test_every_rpc_refuses_bad_tokens(echo: Served) -> None:
    await assert_refuses_bad_tokens(echo, DESCRIPTOR)


async def test_method_without_policy_is_refused_even_with_all_rights(echo: Served) -> None:
    error = await refusal(echo.channel, "Closed", Request())
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_public_method_needs_no_token(echo: Served) -> None:
    assert await call(echo.bare_channel, "Open", Request(cursor="a")) == ["a"]


@pytest.mark.parametrize("name", SHAPES)
async def test_invalid_field_is_named_in_message_and_details(echo: Served, name: str) -> None:
    error = await refusal(echo.channel, name, Request(cursor="x" * 129))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == "cursor: must be at most 128 characters"
    status = received_status(error)
    assert status is not None
    assert (info_of(status).reason, dict(info_of(status).metadata)) == ("FIELD_INVALID", {"field": "cursor"})
    bad_request = error_details_pb2.BadRequest()
    assert status.details[1].Unpack(bad_request)
    assert [violation.field for violation in bad_request.field_violations] == ["cursor"]


async def test_invalid_message_in_the_middle_of_a_stream_is_refused(echo: Served) -> None:
    error = await refusal(echo.channel, "Join", Request(cursor="a"), Request(cursor="x" * 129))
    assert reason_of(error) == "FIELD_INVALID"


async def test_permission_is_checked_before_the_fields(echo: Served) -> None:
    error = await refusal(echo.channel_for("compute.create"), "Echo", Request(cursor="x" * 129))
    assert reason_of(error) == "CAPABILITY_MISSING"


async def test_path_outside_the_capability_is_refused_by_name(echo: Served) -> None:
    channel = echo.channel_for("storage.read:/vo/a")
    assert await call(channel, "Read", Request(filter="/vo/a/x")) == [""]
    error = await refusal(channel, "Read", Request(filter="/vo/ab"))
    assert info_of(received_status(error)).metadata == {"capability": "storage.read", "path": "/vo/ab"}


async def test_unset_path_means_everything(echo: Served) -> None:
    error = await refusal(echo.channel_for("storage.read:/vo"), "Read", Request())
    assert info_of(received_status(error)).metadata["path"] == "/"


async def test_domain_error_reaches_the_caller_with_reason_metadata_and_retry() -> None:
    async with serve(raising(EtagMismatch(name="jobs/1", retry_after=timedelta(seconds=2)))) as served:
        error = await refusal(served.channel, "Echo", Request())
    status = received_status(error)
    assert status is not None
    info, retry = info_of(status), error_details_pb2.RetryInfo()
    assert (info.reason, info.domain, dict(info.metadata)) == ("ETAG_MISMATCH", "khomas", {"name": "jobs/1"})
    assert status.details[1].Unpack(retry)
    assert retry.retry_delay.seconds == 2
    assert error.details() == "jobs/1 was changed meanwhile; read it again, then repeat."


@pytest.mark.parametrize("name", ["Echo", "Repeat", "Chat"])
async def test_unknown_exception_is_logged_once_and_tells_only_a_trace_id(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(raising(RuntimeError("secret"))) as served:
        error = await refusal(served.channel, name, Request())
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in (error.details() or "")
    assert len(info_of(received_status(error)).metadata["trace_id"]) == 32
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == ["call.failed"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "x"), RuntimeError("database or disk is full")])
async def test_full_disk_has_its_own_reason(error: Exception) -> None:
    async with serve(raising(error)) as served:
        assert reason_of(await refusal(served.channel, "Echo", Request())) == "DISK_FULL"


async def test_disk_full_is_found_behind_other_exceptions() -> None:
    error = ValueError("x")
    error.__cause__ = OSError(errno.ENOSPC, "no space")
    async with serve(raising(error)) as served:
        assert reason_of(await refusal(served.channel, "Echo", Request())) == "DISK_FULL"


async def test_trace_of_the_caller_is_continued() -> None:
    seen = []

    async def answer(_: Request) -> Reply:
        seen.append(current_trace_id())
        return Reply()

    async with serve(echo_service(answer)) as served:
        trace_id = "0af7651916cd43dd8448eb211c80319c"
        await call(served.channel, "Echo", Request(), metadata=[("traceparent", f"00-{trace_id}-b7ad6b7169203331-01")])
        await call(served.channel, "Echo", Request(), metadata=[("traceparent", "nonsense")])
    assert seen[0] == trace_id
    assert len(seen[1]) == 32
    assert seen[1] != trace_id


async def test_handler_knows_caller_deadline_and_origin() -> None:
    seen = []

    async def answer(_: Request) -> Reply:
        seen.append(current_call())
        return Reply()

    async with serve(echo_service(answer)) as served:
        await call(served.channel, "Echo", Request(), timeout=5, metadata=[("khomas-origin", "0190")])
        raw = served.channel_for("compute.read", subject="bob")
        await call(raw, "Echo", Request())
    first, second = seen
    assert first is not None
    assert second is not None
    assert first.origin == "0190"
    assert first.deadline is not None
    assert second.principal is not None
    assert second.principal.subject == "bob"


async def test_stream_ends_when_its_token_expires(echo: Served) -> None:
    channel = echo.channel_with(echo.token(expires_in=timedelta(seconds=0.5)))
    async with asyncio.timeout(5):
        assert reason_of(await refusal(channel, "Repeat", Request(cursor="a"))) == "TOKEN_EXPIRED"


async def test_timeout_of_a_handler_is_not_mistaken_for_an_expired_token() -> None:
    async with serve(raising(TimeoutError())) as served:
        assert reason_of(await refusal(served.channel, "Repeat", Request())) == "INTERNAL"


async def test_error_of_another_service_is_told_in_its_own_words() -> None:
    async with serve(raising(NotFound(name="files/1"))) as upstream:

        async def answer(request: Request) -> Reply:
            return await method(upstream.channel, "Echo")(request)  # type: ignore[no-any-return]

        async with serve(echo_service(answer)) as served:
            error = await refusal(served.channel, "Echo", Request())
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")


async def test_service_that_does_not_answer_is_named() -> None:
    async with open_channel("127.0.0.1:1", plaintext=True) as nowhere:
        catalog = ServiceChannel(nowhere, "catalog", NoToken())

        async def answer(request: Request) -> Reply:
            return await method(catalog, "Echo")(request)  # type: ignore[no-any-return]

        async with serve(echo_service(answer)) as served:
            error = await refusal(served.channel, "Echo", Request())
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert info_of(received_status(error)).metadata == {"service": "catalog"}


async def test_refused_token_of_ours_at_another_service_is_our_error(caplog: pytest.LogCaptureFixture) -> None:
    async with serve(echo_service()) as upstream:

        async def answer(request: Request) -> Reply:
            return await method(upstream.bare_channel, "Echo")(request)  # type: ignore[no-any-return]

        async with serve(echo_service(answer)) as served:
            error = await refusal(served.channel, "Echo", Request())
    assert reason_of(error) == "INTERNAL"
    assert "call.failed" in caplog.messages
