"""GA4GH TES, by the public client `py-tes` and by bare requests."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import tes

from khomas.api.scheduler.v1.scheduler_service_pb2 import ListJobsRequest
from khomas.api.scheduler.v1.state_pb2 import JobState
from khomas.kit.errors import FieldInvalid
from khomas.scheduler.tes.documents import read_task
from khomas.scheduler.tes.submission import job_of
from khomas.scheduler.testing import Scheduler, shell
from khomas.scheduler.testing.files import Files

IMAGES = {"debian:*": "", "el9": "x86_64-el9"}
TRUE = {"executors": [{"image": "", "command": ["true"]}]}
READ, CREATE, CANCEL = "compute.read", "compute.create", "compute.cancel"


@pytest.fixture
def settings() -> dict[str, Any]:
    return {"tes": {"enabled": True, "images": IMAGES}}


@dataclass(frozen=True, slots=True)
class Door:
    """The door of a scheduler, and ways through it."""

    scheduler: Scheduler

    @property
    def url(self) -> str:
        return self.scheduler.served.http["scheduler"]

    def client(self, *capabilities: str) -> tes.HTTPClient:
        served = self.scheduler.served
        token = served.token(capabilities) if capabilities else served.token()
        return tes.HTTPClient(self.url, token=token, timeout=20)

    async def request(
        self, method: str, path: str, *, token: str | None = None, **options: Any
    ) -> tuple[int, dict[str, Any]]:
        """Status and JSON."""
        bearer = self.scheduler.served.token() if token is None else token
        headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.request(method, f"{self.url}/ga4gh/tes/v1{path}", **options) as answer,
        ):
            return answer.status, await answer.json()

    async def refused(self, document: Any) -> str:
        """Create a task that is not taken; the message."""
        status, answer = await self.request("POST", "/tasks", json=document)
        assert status == 400, answer
        jobs = (await self.scheduler.stub.ListJobs(ListJobsRequest())).jobs
        assert not jobs
        return str(answer["msg"])

    async def run(self, task: tes.Task) -> tes.Task:
        """Create a task and wait for its end."""
        client = self.client()
        uid = await asyncio.to_thread(client.create_task, task)
        await asyncio.to_thread(client.wait, uid, 30)
        return await asyncio.to_thread(client.get_task, uid, "FULL")


@pytest.fixture
def door(with_files: Scheduler) -> Door:
    return Door(with_files)


def sh(script: str, **fields: Any) -> tes.Executor:
    return tes.Executor(image="", command=["/bin/sh", "-c", script], **fields)


def simple(script: str = "true", **fields: Any) -> tes.Task:
    return tes.Task(executors=[sh(script)], **fields)


async def test_client_creates_lists_waits_and_cancels(door: Door) -> None:
    client = door.client()
    first = await asyncio.to_thread(client.create_task, simple("echo hello", name="greeting"))
    second = await asyncio.to_thread(client.create_task, simple("sleep 60"))

    await asyncio.to_thread(client.wait, first, 30)
    await asyncio.to_thread(client.cancel_task, second)
    while (await asyncio.to_thread(client.get_task, second, "MINIMAL")).state == "CANCELING":
        await asyncio.sleep(0.05)

    listed = await asyncio.to_thread(client.list_tasks)
    assert [(task.id, task.state) for task in listed.tasks] == [(second, "CANCELED"), (first, "COMPLETE")]
    shown = await asyncio.to_thread(client.get_task, first, "FULL")
    assert (shown.name, shown.logs[0].logs[0].stdout, shown.logs[0].logs[0].exit_code) == ("greeting", "hello\n", 0)
    assert shown.logs[0].metadata["backend"] == "local"
    assert shown.creation_time <= shown.logs[0].start_time <= shown.logs[0].end_time


async def test_service_tells_what_it_is_to_everybody(door: Door) -> None:
    _, answer = await door.request("GET", "/service-info", token="")
    information = await asyncio.to_thread(door.client().get_service_info)
    assert answer["type"] == {"group": "org.ga4gh", "artifact": "tes", "version": "1.1.0"}
    assert answer["organization"] == {"name": "hess", "url": door.url}
    assert information.tes_resources_backend_parameters == ["backend", "queue", "share", "priority", "wall_time"]
    assert (information.id, information.storage) == ("khomas.hess", ["khomas:///hess/"])


async def test_executors_run_one_after_the_other_over_the_same_files(door: Door, files: Files) -> None:
    files.put("/hess/in.txt", b"from the catalogue\n")
    task = tes.Task(
        name="three steps",
        description="what a description is",
        inputs=[
            tes.Input(url="khomas:///hess/in.txt", path="/data/in.txt"),
            tes.Input(content="inline {braces}\n", path="/data/more/inline.txt"),
        ],
        outputs=[
            tes.Output(url="khomas:///hess/out/all.txt", path="/data/all.txt"),
            tes.Output(url="/hess/out/parts", path="/vol/a/*.part", path_prefix="/vol"),
        ],
        volumes=["/vol/a/"],
        executors=[
            sh("cat /data/in.txt /data/more/inline.txt", stdout="/vol/a/1.part"),
            sh("cat; pwd", stdin="/vol/a/1.part", stdout="/vol/a/2.part", workdir="/data/more"),
            sh("cat $FILES > /data/all.txt; echo done >&2", env={"FILES": "/vol/a/1.part /vol/a/2.part"}),
        ],
        tags={"WORKFLOW_ID": "cwl-01234"},
    )
    done = await door.run(task)

    assert (done.state, [log.exit_code for log in done.logs[0].logs]) == ("COMPLETE", [0, 0, 0])
    together = b"from the catalogue\ninline {braces}\n"
    assert files.content["/hess/out/parts/a/1.part"] == together
    assert files.content["/hess/out/all.txt"].startswith(together + together)
    assert files.content["/hess/out/all.txt"].endswith(b"root/data/more\n")
    assert done.logs[0].logs[2].stderr == "done\n"
    assert sorted((one.url, one.path) for one in done.logs[0].outputs) == [
        ("/hess/out/parts/a/1.part", "/vol/a/1.part"),
        ("/hess/out/parts/a/2.part", "/vol/a/2.part"),
        ("khomas:///hess/out/all.txt", "/data/all.txt"),
    ]
    assert {one.path: one.size_bytes for one in done.logs[0].outputs}["/vol/a/1.part"] == len(together)
    # What was asked for comes back as it was.
    assert (done.name, done.description, done.tags, done.inputs) == (
        task.name,
        task.description,
        task.tags,
        task.inputs,
    )
    assert [one.command for one in done.executors] == [one.command for one in task.executors]


async def test_first_executor_that_fails_ends_the_task_unless_it_may_fail(door: Door) -> None:
    failed = await door.run(tes.Task(executors=[sh("exit 3", ignore_error=True), sh("exit 4"), sh("true")]))
    assert failed.state == "EXECUTOR_ERROR"
    assert [log.exit_code for log in failed.logs[0].logs] == [3, 4]
    assert failed.logs[0].system_logs == ["exit code 4"] or "4" in failed.logs[0].system_logs[0]


async def test_program_that_is_not_there_is_an_error_of_the_executor(door: Door) -> None:
    failed = await door.run(tes.Task(executors=[tes.Executor(image="", command=["no-such-program"])]))
    assert (failed.state, failed.logs[0].logs[0].exit_code) == ("EXECUTOR_ERROR", 127)
    assert "no-such-program" in failed.logs[0].logs[0].stderr


async def test_view_says_how_much_is_shown(door: Door) -> None:
    done = await door.run(simple("echo printed", inputs=[tes.Input(content="secret", path="/data/a")]))
    _, minimal = await door.request("GET", f"/tasks/{done.id}")
    _, basic = await door.request("GET", f"/tasks/{done.id}", params={"view": "BASIC"})
    _, full = await door.request("GET", f"/tasks/{done.id}", params={"view": "FULL"})
    assert minimal == {"id": done.id, "state": "COMPLETE"}
    assert "content" not in basic["inputs"][0]
    assert basic["logs"][0]["logs"][0].keys() == {"start_time", "end_time", "exit_code"}
    assert "system_logs" not in basic["logs"][0]
    assert full["inputs"] == [{"path": "/data/a", "type": "FILE", "content": "secret"}]
    assert full["logs"][0]["logs"][0]["stdout"] == "printed\n"


FOUND = {
    "name_prefix=one": ["one 1", "one 2"],
    "name_prefix=one%202": ["one 2"],
    "name_prefix=*": [],
    "tag_key=Group&tag_value=a": ["one 1"],
    "tag_key=Group": ["one 1", "one 2"],
    "tag_key=Group&tag_value=b&tag_key=kind": [],
    "tag_key=kind&tag_value=x": ["two"],
    "state=COMPLETE": ["one 1"],
    "state=EXECUTOR_ERROR&name_prefix=two": ["two"],
    **{f"state={state}": [] for state in ("SYSTEM_ERROR", "PREEMPTED", "QUEUED", "RUNNING", "CANCELED", "UNKNOWN")},
}


async def test_list_is_filtered(door: Door) -> None:
    await asyncio.gather(
        door.run(simple("true", name="one 1", tags={"Group": "a"})),
        door.run(simple("exit 1", name="one 2", tags={"Group": "b"})),
        door.run(simple("exit 1", name="two", tags={"kind": "x"})),
        door.scheduler.run(shell("true", display_name="one that is no task")),
    )
    found = {}
    for query in FOUND:
        _, answer = await door.request("GET", f"/tasks?view=BASIC&{query}")
        found[query] = sorted(task["name"] for task in answer["tasks"])
    assert found == FOUND


async def test_task_that_shall_end_is_found_as_canceling(door: Door) -> None:
    client = door.client()
    stubborn = simple("trap '' TERM; echo up; sleep 300 & while :; do wait; done")
    uid = await asyncio.to_thread(client.create_task, stubborn)
    while (await asyncio.to_thread(client.get_task, uid, "MINIMAL")).state != "RUNNING":
        await asyncio.sleep(0.05)
    _, running = await door.request("GET", "/tasks?state=RUNNING")
    await asyncio.to_thread(client.cancel_task, uid)
    _, canceling = await door.request("GET", "/tasks?state=CANCELING")
    _, still_running = await door.request("GET", "/tasks?state=RUNNING")
    assert [task["id"] for task in running["tasks"]] == [uid]
    assert [(task["id"], task["state"]) for task in canceling["tasks"]] == [(uid, "CANCELING")]
    assert still_running["tasks"] == []


async def test_executor_may_end_by_itself_and_no_other_begins(door: Door) -> None:
    client = door.client()
    polite = sh("trap 'echo bye; exit 9' TERM; echo up; sleep 300 & wait", ignore_error=True)
    uid = await asyncio.to_thread(client.create_task, tes.Task(executors=[polite, sh("echo never")]))
    await door.scheduler.wait(f"jobs/{uid}", [JobState.JOB_STATE_RUNNING])
    while await door.scheduler.log(f"jobs/{uid}") != "up\n":
        await asyncio.sleep(0.05)
    await asyncio.to_thread(client.cancel_task, uid)
    await door.scheduler.wait(f"jobs/{uid}")
    ended = await asyncio.to_thread(client.get_task, uid, "FULL")
    assert ended.state == "CANCELED"
    assert [(log.stdout, log.exit_code) for log in ended.logs[0].logs] == [("up\nbye\n", 9)]


async def test_list_goes_in_pages(door: Door) -> None:
    client = door.client()
    made = [await asyncio.to_thread(client.create_task, simple()) for _ in range(5)]
    first = await asyncio.to_thread(client.list_tasks, page_size=3)
    second = await asyncio.to_thread(client.list_tasks, page_size=3, page_token=first.next_page_token)
    assert sorted(task.id for task in [*first.tasks, *second.tasks]) == sorted(made)
    assert not second.next_page_token


async def test_token_decides_what_may_be_done(door: Door) -> None:
    served = door.scheduler.served
    uid = await asyncio.to_thread(door.client().create_task, simple("sleep 60"))
    tasks, task, cancel = "/tasks", f"/tasks/{uid}", f"/tasks/{uid}:cancel"
    body = {"executors": [{"image": "", "command": ["true"]}]}

    for method, path in (("GET", tasks), ("GET", task), ("POST", tasks), ("POST", cancel)):
        assert (await door.request(method, path, token="", json=body))[0] == 401
        assert (await door.request(method, path, token="nonsense", json=body))[0] == 401
    assert (await door.request("POST", tasks, token=served.token([READ]), json=body))[0] == 403
    assert (await door.request("POST", cancel, token=served.token([READ, CREATE])))[0] == 403
    assert (await door.request("GET", task, token=served.token([CREATE])))[0] == 403
    # What strangers send is not even read.
    assert (await door.request("POST", tasks, token="", data="{"))[0] == 401
    # A token in the address would be in everybody's logs.
    assert (await door.request("GET", f"{tasks}?access_token={served.token()}", token=""))[0] == 401
    assert (await door.request("POST", cancel, token=served.token([CANCEL])))[0] == 200


async def test_files_that_the_caller_may_not_read_or_write_are_refused(door: Door, files: Files) -> None:
    files.put("/hess/secret.txt", b"secret")
    token = door.scheduler.served.token([CREATE, "storage.read:/hess/public", "storage.create:/hess/public"])
    executors = [{"image": "", "command": ["true"]}]
    reading = {"executors": executors, "inputs": [{"url": "/hess/secret.txt", "path": "/data/a"}]}
    writing = {"executors": executors, "outputs": [{"url": "/hess/new.txt", "path": "/data/a"}]}
    assert (await door.request("POST", "/tasks", token=token, json=reading))[0] == 403
    assert (await door.request("POST", "/tasks", token=token, json=writing))[0] == 403


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"executors": []}, ["executors"]),
        ({"executors": [{"image": "", "command": []}]}, ["executors[0].command"]),
        ({"executors": [{"image": "alpine", "command": ["true"]}]}, ["alpine", "debian:*, el9", "without a container"]),
        ({"executors": [{"image": "", "command": ["true"], "stdin": "data"}]}, ["stdin", "absolute"]),
        ({"inputs": [{"url": "s3://bucket/a", "path": "/data/a"}]}, ["inputs[0].url", "s3://bucket/a", "khomas:///"]),
        ({"inputs": [{"path": "/data/a"}]}, ["inputs[0].url"]),
        ({"inputs": [{"content": "x", "path": "/usr/bin/sh"}]}, ["inputs[0].path", "/usr is the node's own"]),
        ({"inputs": [{"content": "x", "path": "/data/../../a"}]}, ["inputs[0].path"]),
        ({"inputs": [{"url": "/hess/d", "path": "/data/d", "type": "DIRECTORY"}]}, ["inputs[0].type"]),
        ({"outputs": [{"url": "file:///out", "path": "/data/a"}]}, ["outputs[0].url"]),
        ({"outputs": [{"url": "/hess/o", "path": "/data/*/a", "path_prefix": "/data"}]}, ["last segment"]),
        ({"outputs": [{"url": "/hess/o", "path": "/data/*"}]}, ["outputs[0].path_prefix", "/data"]),
        ({"outputs": [{"url": "/hess/o", "path": "/data/o", "type": "DIRECTORY"}]}, ["outputs[0].type", "wildcard"]),
        ({"resources": {"cpu_cores": -1}}, ["resources.cpu_cores"]),
        ({"resources": {"ram_gb": "much"}}, ["resources.ram_gb"]),
        ({"resources": {"backend_parameters": {"wall_time": "1 h"}}}, ["wall_time", "3600s"]),
        ({"resources": {"backend_parameters": {"VmSize": "x"}, "backend_parameters_strict": True}}, ["VmSize"]),
        ({"name": "n" * 200_000}, ["bytes", "131072"]),
        ({"tags": {"a": "b" * 257}}, ["tags.a"]),
        ({"tags": {"a": 1}}, ["tags.a"]),
        ({"name": "\ud800"}, ["name", "Unicode"]),
        ({"executors": [{"image": "", "command": ["a\0"]}]}, ["executors[0].command[0]", "NUL"]),
        ({"tags": {"\ud800": "a"}}, ["tags"]),
        ({"inputs": [{"content": "\ud800", "path": "/data/a"}]}, ["inputs[0].content"]),
    ],
)
def test_bad_task_is_refused_with_what_to_do(change: dict[str, Any], words: list[str]) -> None:
    document = {"executors": [{"image": "", "command": ["true"]}], **change}
    with pytest.raises(FieldInvalid) as caught:
        job_of(read_task(json.dumps(document)), IMAGES)
    assert [word for word in words if word not in caught.value.message] == []


@pytest.mark.parametrize("body", ["", "{", "[]", "[" * 100_000, '{"executors": NaN}'])
def test_what_is_no_task_is_refused(body: str) -> None:
    with pytest.raises(FieldInvalid):
        read_task(body)


async def test_task_that_the_service_does_not_take_is_refused_with_its_words(door: Door) -> None:
    assert "task" in await door.refused("text")
    twice = [{"content": "x", "path": "/a"}, {"content": "y", "path": "/a"}]
    assert "root/a" in await door.refused({**TRUE, "inputs": twice})
    assert "nowhere" in await door.refused({**TRUE, "resources": {"zones": ["nowhere"]}})
    elsewhere = {"backend_parameters": {"BACKEND": "elsewhere"}}
    assert "elsewhere" in await door.refused({**TRUE, "resources": elsewhere})
    colour = {"backend_parameters": {"local.colour": "blue"}}
    assert "colour" in await door.refused({**TRUE, "resources": colour})


async def test_bad_query_is_refused(door: Door) -> None:
    for query in ("view=HUGE", "state=SLEEPING", "page_size=-1", "page_size=x", "page_token=nonsense"):
        status, answer = await door.request("GET", f"/tasks?{query}")
        assert (query, status, answer["status_code"]) == (query, 400, 400)


async def test_body_that_is_too_large_is_refused(door: Door) -> None:
    status, answer = await door.request("POST", "/tasks", data=io.BytesIO(b" " * (9 * 1024 * 1024)))
    assert (status, answer["status_code"]) == (413, 413)


async def test_what_is_no_task_is_not_found(door: Door) -> None:
    [job] = await door.scheduler.run(shell("true"))
    for uid in ("nonsense", "019a0000-0000-7000-8000-000000000000", job.uid):
        assert (await door.request("GET", f"/tasks/{uid}"))[0] == 404
    assert (await door.request("POST", "/tasks/nonsense:cancel"))[0] == 404
    assert (await door.request("GET", "/nonsense"))[0] == 404


async def test_resources_are_those_of_the_job(door: Door) -> None:
    resources = tes.Resources(
        cpu_cores=1,
        ram_gb=0.5,
        disk_gb=1.5,
        preemptible=True,
        zones=["local"],
        backend_parameters={"Wall_Time": "90s", "backend": "local", "priority": "5", "VmSize": "large"},
    )
    done = await door.run(simple("true", resources=resources))
    spec = (await door.scheduler.get(f"jobs/{done.id}")).spec
    assert (spec.resources.cpu_milli, spec.resources.memory_bytes, spec.resources.disk_bytes) == (
        1000,
        5 * 10**8,
        15 * 10**8,
    )
    assert (spec.resources.wall_time.seconds, spec.priority) == (90, 5)
    assert (list(spec.placement.sites), list(spec.placement.backends)) == (["local"], ["local"])
    # What is not known is told, and is not a part of the task.
    assert "VmSize" in done.logs[0].system_logs[0]
    assert "VmSize" not in done.resources.backend_parameters


async def test_image_is_a_platform_of_the_nodes(door: Door) -> None:
    any_node = await door.run(tes.Task(executors=[tes.Executor(image="debian:13", command=["true"])]))
    assert any_node.state == "COMPLETE"
    refused = {"executors": [{"image": "el9", "command": ["true"]}]}
    status, answer = await door.request("POST", "/tasks", json=refused)
    assert (status, answer["reason"]) == (400, "NO_MATCH")
    assert "x86_64-el9" in answer["msg"]


async def test_door_is_closed_unless_it_is_asked_for(scheduler_without: Callable[[], Any]) -> None:
    assert "scheduler" not in scheduler_without()


@pytest.fixture
async def scheduler_without(tmp_path: Path) -> AsyncIterator[Callable[[], Any]]:
    from khomas.kit.testing import serve
    from khomas.scheduler.app import service

    async with serve(service, state=tmp_path / "closed") as served:
        yield lambda: served.http
