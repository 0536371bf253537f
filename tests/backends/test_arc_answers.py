"""What the backend makes of the answers of a CE, also of those that a real one seldom gives."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from aiohttp import web

from khomas.scheduler.backends.arc import open_arc
from khomas.scheduler.backends.arc.answers import job_name, resources, usage_of, versions
from khomas.scheduler.backends.arc.backend import ArcBackend
from khomas.scheduler.backends.arc.client import ArcError, ArcRefusedError, ArcUnreachableError
from khomas.scheduler.backends.arc.description import descriptions, script
from khomas.scheduler.backends.arc.settings import ArcSettings
from khomas.scheduler.backends.interface import Seen, State, SubmitItem, Submitted
from khomas.scheduler.conformance import job, token


@dataclass(slots=True)
class ComputingElement:
    """A CE that says what it is told to say."""

    url: str = ""
    # By method and the end of the path, or by the action.
    answers: dict[str, Any] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        what = request.query.get("action") or f"{request.method} {request.path.rpartition('/')[2]}"
        self.calls.append(what)
        said = self.answers.get(what, web.json_response({}))
        if said == "hang up":
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        return said if isinstance(said, web.Response) else web.json_response(said)


@pytest.fixture
async def ce() -> AsyncIterator[ComputingElement]:
    element = ComputingElement(answers={"GET rest": {"version": ["1.0", "1.1"]}})
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", element.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    element.url = f"http://127.0.0.1:{runner.addresses[0][1]}/arex"
    yield element
    await runner.cleanup()


@pytest.fixture
async def backend(ce: ComputingElement, tmp_path: Path) -> AsyncIterator[ArcBackend]:
    (tmp_path / "token").write_text("abc\n")
    opened = open_arc(ArcSettings(ce.url, token=tmp_path / "token", deadline_s=5))
    yield opened
    await opened.aclose()


async def submitted(backend: ArcBackend, number: int = 1) -> list[tuple[Submitted, timedelta | None]]:
    return [(one.kind, one.retry_after) for one in await backend.submit([job("true") for _ in range(number)])]


async def test_answer_to_a_submission_that_is_lost_leaves_it_unknown(ce: ComputingElement, backend: ArcBackend) -> None:
    ce.answers["new"] = "hang up"
    assert await submitted(backend, 2) == [(Submitted.UNKNOWN, None)] * 2


async def test_full_ce_is_asked_again_later(ce: ComputingElement, backend: ArcBackend) -> None:
    ce.answers["new"] = web.Response(status=500, reason="No more jobs allowed")
    [(kind, after)] = await submitted(backend)
    assert (kind, bool(after)) == (Submitted.THROTTLED, True)


async def test_each_job_has_its_own_answer(ce: ComputingElement, backend: ArcBackend) -> None:
    ce.answers["new"] = {"job": [{"status-code": "201", "id": "a"}, {"status-code": "500", "reason": "no queue"}]}
    first, second, third = await backend.submit([job("true") for _ in range(3)])
    assert (first.kind, first.native_id) == (Submitted.ACCEPTED, "a")
    assert (second.kind, second.message) == (Submitted.REJECTED, "the CE refused it: no queue")
    assert third.kind == Submitted.UNKNOWN


async def test_job_whose_script_did_not_arrive_is_unknown(ce: ComputingElement, backend: ArcBackend) -> None:
    ce.answers["new"] = {"job": {"status-code": "201", "id": "a"}}
    ce.answers["PUT khomas.sh"] = web.Response(status=500)
    assert await submitted(backend) == [(Submitted.UNKNOWN, None)]


async def test_what_is_no_document_says_nothing_about_jobs(ce: ComputingElement, backend: ArcBackend) -> None:
    ce.answers["status"] = web.Response(text="<html>busy</html>")
    answer = await backend.poll(["a", "b"])
    assert (answer.complete, [one.seen for one in answer.observations]) == (False, [Seen.NOT_ANSWERED] * 2)


async def test_job_that_the_answer_leaves_out_is_not_absent(ce: ComputingElement, backend: ArcBackend) -> None:
    ce.answers["status"] = {"job": {"status-code": "404", "id": "a"}}
    answer = await backend.poll(["a", "b"])
    assert [one.seen for one in answer.observations] == [Seen.ABSENT, Seen.NOT_ANSWERED]
    assert not answer.complete


async def test_new_state_of_the_list_wins_over_the_old_one_of_the_status(
    ce: ComputingElement, backend: ArcBackend
) -> None:
    document = {"ComputingActivity": {"Name": "t"}}
    ce.answers["status"] = {"job": {"status-code": "200", "id": "a", "state": "ACCEPTED"}}
    ce.answers["info"] = {"job": {"status-code": "200", "id": "a", "info_document": document}}
    ce.answers["GET jobs"] = {"job": {"id": "a", "state": "FINISHED"}}
    ce.answers["GET exit.json"] = {"state": "SUCCEEDED", "host": "n1", "start_time": "2026-01-01T00:00:00Z"}
    [seen] = (await backend.poll(["a"])).observations
    assert (seen.token, seen.state, seen.node) == ("t", State.SUCCEEDED, "n1")


@pytest.mark.parametrize(("shared", "status", "cpu"), [(True, 200, 1.5), (True, 500, None), (False, 200, None)])
async def test_what_a_job_has_used_is_read_where_nodes_share_its_folder_and_when_that_is_wanted(
    ce: ComputingElement, tmp_path: Path, shared: bool, status: int, cpu: float | None
) -> None:
    (tmp_path / "token").write_text("abc\n")
    backend = open_arc(ArcSettings(ce.url, token=tmp_path / "token", shared_session=shared))
    ce.answers["status"] = {"job": {"status-code": "200", "id": "a", "state": "RUNNING"}}
    document = {"ComputingActivity": {"Name": "t"}}
    ce.answers["info"] = {"job": {"status-code": "200", "id": "a", "info_document": document}}
    ce.answers["GET jobs"] = {"job": {"id": "a", "state": "RUNNING"}}
    ce.answers["GET started"] = {"host": "n1", "time": "2026-01-01T00:00:00Z"}
    beat = {"time": "2026-01-01T00:01:00Z", "cpu_s": 1.5, "memory_bytes": 1, "disk_bytes": 1}
    ce.answers["GET heartbeat"] = web.Response(text=json.dumps(beat), status=status)
    await backend.poll(["a"])
    assert "GET heartbeat" not in ce.calls
    [seen] = (await backend.poll(["a"], measure=["a"])).observations
    await backend.aclose()
    assert (seen.state, seen.usage.cpu_user_s if seen.usage else None) == (State.RUNNING, cpu)
    assert (backend.capabilities.live_usage, "GET heartbeat" in ce.calls) == (shared, shared)


async def test_finished_job_without_a_record_is_no_success(ce: ComputingElement, backend: ArcBackend) -> None:
    document = {"ComputingActivity": {"Name": "t"}}
    ce.answers["status"] = {"job": {"status-code": "200", "id": "a", "state": "FINISHED"}}
    ce.answers["info"] = {"job": {"status-code": "200", "id": "a", "info_document": document}}
    for what in ("GET exit.json", "GET failed", "HEAD cancel"):
        ce.answers[what] = web.Response(status=404)
    [seen] = (await backend.poll(["a"])).observations
    assert (seen.state, seen.record) == (State.FAILED, None)


async def test_token_is_read_for_every_call(ce: ComputingElement, backend: ArcBackend, tmp_path: Path) -> None:
    await backend.list_resources()
    (tmp_path / "token").write_text("")
    with pytest.raises(ArcError, match="holds no token"):
        await backend.list_resources()


async def test_token_that_has_expired_is_not_sent(ce: ComputingElement, backend: ArcBackend, tmp_path: Path) -> None:
    claims = base64.urlsafe_b64encode(json.dumps({"exp": 1_700_000_000}).encode()).decode().rstrip("=")
    (tmp_path / "token").write_text(f"e30.{claims}.sig")
    with pytest.raises(ArcRefusedError, match="expired at 2023-11-14"):
        await backend.submit([job("true")])
    assert ce.calls == []


async def test_ce_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc")
    backend = open_arc(ArcSettings("http://127.0.0.1:1/arex", token=tmp_path / "token"))
    with pytest.raises(ArcUnreachableError, match="no connection"):
        await backend.submit([job("true")])
    await backend.aclose()


async def test_two_of_one_machine_never_make_a_token_twice(
    ce: ComputingElement, backend: ArcBackend, tmp_path: Path
) -> None:
    other = open_arc(ArcSettings(ce.url, token=tmp_path / "token"))
    ce.answers["new"] = {"job": {"status-code": "201", "id": "a"}}
    await asyncio.gather(backend.submit([job("true")]), other.submit([job("true")]))
    await other.aclose()
    made = [call for call in ce.calls if call in ("new", "GET jobs")]
    assert made == ["GET jobs", "new", "GET jobs", "new"]


def test_description_names_what_the_job_needs() -> None:
    needs = {"cpu_milli": 1500, "memory_bytes": 1000, "wall_time_s": 0.5}
    native = {"priority": 7, "runtime_environments": ["ENV/A", "ENV/B"]}
    item = SubmitItem(token(), {"command": ["true"], "resources": needs}, queue="long", native=native)
    settings = ArcSettings("https://ce", token=Path("t"), extra_wall_time_s=60, extra_memory_bytes=24)
    document = ElementTree.fromstring(descriptions([item, job("true")], settings))  # noqa: S314  our own
    first = {part.tag.rpartition("}")[2]: part.text for part in document[0].iter()}
    assert (first["NumberOfSlots"], first["IndividualPhysicalMemory"], first["WallTime"]) == ("2", "1024", "61")
    assert (first["QueueName"], first["Priority"]) == ("long", "7")
    assert len(document) == 2


def test_script_carries_any_text() -> None:
    text = script({"command": ["echo", "it's\nEND OF MANIFEST\n$(ü)"], "token": "t"}).decode()
    assert text.count("\nEND OF MANIFEST\n") == 1


def test_one_of_a_kind_is_no_list() -> None:
    share = {"Name": "grid", "FreeSlots": "3", "MaxWallTime": "3600", "MaxMainMemory": "999999999"}
    manager = {"TotalSlots": "8"}
    service = {"ComputingShare": share, "ComputingManager": manager}
    document = {"Domains": {"AdminDomain": {"Services": {"ComputingService": service}}}}
    [one] = resources(document)
    assert (one.queue, one.cpu_milli, one.free_cpu_milli) == ("grid", 8000, 3000)
    assert (one.max_wall_time, one.max_memory_bytes) == (timedelta(hours=1), None)
    assert (versions({"version": "1.0"}), versions({"version": ["1.0", "1.1"]})) == (["1.0"], ["1.0", "1.1"])


@pytest.mark.parametrize(("state", "closed"), [("production", False), ("draining", True), ("closed", True)])
def test_queue_that_does_not_serve_is_closed(state: str, closed: bool) -> None:
    service = {"ComputingShare": {"Name": "grid", "ServingState": state}}
    [one] = resources({"Domains": {"AdminDomain": {"Services": {"ComputingService": service}}}})
    assert one.closed == closed


async def test_configured_queue_is_the_default_one(ce: ComputingElement, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc\n")
    service = {"ComputingShare": [{"Name": "grid"}, {"Name": "long"}]}
    ce.answers["GET info"] = {"Domains": {"AdminDomain": {"Services": {"ComputingService": service}}}}
    for queue, defaults in {"": [False, False], "long": [False, True]}.items():
        backend = open_arc(ArcSettings(ce.url, token=tmp_path / "token", queue=queue))
        assert [one.is_default for one in await backend.list_resources()] == defaults
        await backend.aclose()


def test_document_without_figures_is_no_usage() -> None:
    assert usage_of({"State": "arcrest:FAILED"}) is None
    used = usage_of({"UsedTotalWallTime": "20", "UsedTotalCPUTime": "5", "RequestedSlots": "2"})
    assert used is not None
    assert (used.wall_s, used.cpu_user_s) == (10, 5)


def test_name_is_read_from_the_notes_of_the_ce() -> None:
    assert job_name("lrms=fork\njobname=abc\nqueue=fork\n") == "abc"


@pytest.mark.parametrize("options", [{}, {"token": "a", "certificate": "b"}])
def test_there_is_one_credential(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give one"):
        ArcSettings("https://ce", **options)
