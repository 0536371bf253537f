"""Files that jobs read and make: from the catalogue, and all or nothing back into it."""

import asyncio
from uuid import uuid4

import grpc
import pytest
from google.protobuf.json_format import MessageToDict

from khomas.api.catalog.v1.dataset_pb2 import MetadataKey
from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.api.scheduler.v1.state_pb2 import Reason
from khomas.kit.boundary.status import reason_of
from khomas.kit.errors import UpstreamUnavailable
from khomas.scheduler.testing import Scheduler, shell, states
from khomas.scheduler.testing.files import FileExists, Files


async def test_input_is_brought_in_and_output_brought_out_with_its_origin(with_files: Scheduler, files: Files) -> None:
    files.put("/hess/raw/run_1.txt", b"abc")
    files.keys["zenith"] = MetadataKey.TYPE_NUMBER
    spec = shell(
        "tr a-z A-Z < run_1.txt > out.txt",
        inputs=[{"file": "/hess/raw/run_1.txt"}],
        outputs=[
            {"glob": "out.txt", "name_pattern": "/hess/upper/{file}", "metadata": {"zenith": "40", "kind": "{stem}"}}
        ],
    )
    [job] = await with_files.run(spec)
    assert states([job]) == ["SUCCEEDED"], job.status
    assert files.content["/hess/upper/out.txt"] == b"ABC"
    [commit] = files.commits
    assert (commit.origin, commit.owner) == (job.attempts[0].uid, job.owner)
    assert MessageToDict(commit.files[0])["parents"] == ["/hess/raw/run_1.txt"]
    assert MessageToDict(commit.files[0])["metadata"] == {"zenith": {"number": 40.0}, "kind": {"text": "out"}}
    [output] = job.attempts[0].outputs
    assert (output.name, output.file_uid) == ("/hess/upper/out.txt", files.files["/hess/upper/out.txt"].uid)
    assert list(job.attempts[0].inputs) == ["/hess/raw/run_1.txt"]


async def test_job_without_files_calls_nobody(with_files: Scheduler, files: Files) -> None:
    await with_files.run(shell("true"))
    assert files.calls == []


async def test_missing_input_is_refused_at_the_submission(with_files: Scheduler) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await with_files.submit(shell("true", inputs=[{"file": "/hess/raw/none"}]))
    assert (caught.value.code(), reason_of(caught.value)) == (grpc.StatusCode.FAILED_PRECONDITION, "INPUT_NOT_FOUND")


async def test_storage_that_does_not_answer_delays_the_end_and_nothing_else(
    with_files: Scheduler, files: Files
) -> None:
    files.troubles = [UpstreamUnavailable(service="catalog")]
    spec = shell("echo 1 > o", outputs=[{"glob": "o", "name_pattern": "/hess/o"}])
    [job] = await with_files.run(spec)
    assert (states([job]), len(job.attempts)) == (["SUCCEEDED"], 1)


@pytest.mark.parametrize("settings", [{"grant_lifetime": 1.0}])
async def test_upload_is_renewed_while_its_job_runs_and_no_longer(with_files: Scheduler, files: Files) -> None:
    await with_files.run(shell("sleep 2; echo 1 > o", outputs=[{"glob": "o", "name_pattern": "/hess/o"}]))
    while_it_ran = list(files.renewed)
    await asyncio.sleep(1)
    assert len(while_it_ran) >= 2
    assert set(while_it_ran) == set(files.uploads)
    assert files.renewed == while_it_ran


@pytest.mark.parametrize("settings", [{"grant_lifetime": 2.0}])
async def test_renewal_that_fails_is_tried_again_soon(with_files: Scheduler, files: Files) -> None:
    files.renewal_troubles = [UpstreamUnavailable(service="storage") for _ in range(3)]
    await with_files.run(shell("sleep 2; echo 1 > o", outputs=[{"glob": "o", "name_pattern": "/hess/o"}]))
    assert files.renewal_troubles == []
    assert files.renewed


async def test_output_that_the_catalogue_refuses_fails_the_job_and_keeps_the_file(
    with_files: Scheduler, files: Files
) -> None:
    files.troubles = [FileExists(name="/hess/o")]
    [job] = await with_files.run(shell("echo 1 > o", outputs=[{"glob": "o", "name_pattern": "/hess/o"}]))
    assert job.status.reason == Reason.REASON_DATA_REGISTER
    assert "/hess/o" in job.status.message
    await asyncio.sleep(0.2)
    assert files.abandoned == []


async def test_upload_of_a_failed_job_is_given_up(with_files: Scheduler, files: Files) -> None:
    [job] = await with_files.run(shell("exit 1", outputs=[{"glob": "o", "name_pattern": "/hess/o"}]))
    async with asyncio.timeout(5):
        while not files.abandoned:
            await asyncio.sleep(0.02)
    assert files.abandoned == list(files.uploads)
    assert states([job]) == ["FAILED"]


async def test_sandbox_output_is_kept_and_read(with_files: Scheduler) -> None:
    [job] = await with_files.run(shell("mkdir d; echo kept > d/o.txt", outputs=[{"glob": "d/*.txt"}]))
    [output] = job.attempts[0].outputs
    assert (output.path, output.sandbox, output.size_bytes) == ("d/o.txt", True, 5)
    request = pb.ReadSandboxRequest(output=pb.JobOutput(job=job.name, path="d/o.txt"))
    assert b"".join([piece.data async for piece in with_files.stub.ReadSandbox(request)]) == b"kept\n"


async def test_files_of_a_failed_job_are_kept_for_finding_out_why(with_files: Scheduler) -> None:
    outputs = [{"glob": "core*", "when": "WHEN_ON_FAILURE"}]
    [job] = await with_files.run(shell("echo dump > core.1; exit 1", outputs=outputs))
    assert job.status.reason == Reason.REASON_APP_EXIT_CODE
    assert [output.path for output in job.attempts[0].outputs] == ["core.1"]


async def test_array_by_files_divides_a_dataset(with_files: Scheduler, files: Files) -> None:
    for number in range(5):
        files.put(f"/hess/raw/run_{number}.txt", b"x" * (number + 1))
    spec = shell(
        "cat inputs/* | wc -c > {input_stem}.n",
        inputs=[{"dataset": "datasets/hess/raw", "path": "inputs/"}],
        outputs=[{"glob": "*.n", "name_pattern": "/hess/n/{file}"}],
        splitter={"files": {"files_per_job": 2}},
    )
    [array] = await with_files.run(spec)
    assert states([array]) == ["SUCCEEDED"]
    assert {name: content.strip() for name, content in files.content.items() if name.startswith("/hess/n/")} == {
        "/hess/n/run_0.n": b"3",
        "/hess/n/run_2.n": b"7",
        "/hess/n/run_4.n": b"5",
    }


async def test_text_of_the_children_is_merged_in_their_order(with_files: Scheduler, files: Files) -> None:
    spec = shell(
        "echo {index} > n.txt",
        outputs=[{"glob": "n.txt", "name_pattern": "/hess/{index}/n.txt"}],
        splitter={"count": {"count": 3}},
        mergers=[{"text": {"path": "all.txt"}, "outputs": [{"glob": "all.txt", "name_pattern": "/hess/all.txt"}]}],
    )
    answer = await with_files.answer(spec)
    [merger] = [await with_files.wait(job.name) for job in answer.mergers]
    assert states([merger]) == ["SUCCEEDED"], merger.status
    assert merger.merges == answer.jobs[0].name
    assert files.content["/hess/all.txt"] == b"0\n1\n2\n"
    assert sorted(merger.attempts[0].inputs) == [f"/hess/{index}/n.txt" for index in range(3)]


async def test_merger_of_sandbox_files_takes_what_succeeded(with_files: Scheduler) -> None:
    spec = shell(
        "test {index} != 1 && echo {index} > n.txt",
        outputs=[{"glob": "n.txt"}],
        splitter={"count": {"count": 3}},
        mergers=[{"text": {"path": "all.txt", "headers": True}, "min_fraction": 0.5}],
    )
    answer = await with_files.answer(spec)
    [merger] = [await with_files.wait(job.name) for job in answer.mergers]
    request = pb.ReadSandboxRequest(output=pb.JobOutput(job=merger.name, path="all.txt"))
    text = b"".join([piece.data async for piece in with_files.stub.ReadSandbox(request)]).decode()
    array = answer.jobs[0].name
    assert text == f"# {array}/0\n0\n# {array}/2\n2\n"


async def test_uploaded_sandbox_file_is_there_in_the_work_directory(scheduler: Scheduler) -> None:
    import hashlib

    content = b"#!/bin/sh\necho from a sandbox\n"
    sha256 = hashlib.sha256(content).hexdigest()
    missing = await scheduler.stub.FindMissingSandboxes(pb.FindMissingSandboxesRequest(sha256=[sha256]))
    assert list(missing.sha256) == [sha256]
    stored = pb.BatchCreateSandboxesRequest(
        sandboxes=[pb.SandboxContent(sha256=sha256, content=content)], request_id=str(uuid4())
    )
    assert (await scheduler.stub.BatchCreateSandboxes(stored)).created == 1
    source = {"sandbox": {"sha256": sha256, "name": "a.sh", "sizeBytes": len(content)}, "executable": True}
    [job] = await scheduler.run(shell("./a.sh", inputs=[source]))
    assert await scheduler.log(job.name) == "from a sandbox\n"
