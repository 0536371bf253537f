"""From jobs to tasks as clients read them."""

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from khomas.api.scheduler.v1.job_pb2 import Attempt, Job, OutputFile
from khomas.api.scheduler.v1.job_spec_pb2 import JobSpec
from khomas.scheduler.tes.states import task_state
from khomas.scheduler.tes.submission import ROOT, TASK_FILE

# A step whose end nobody noted: its process was killed with the job.
_KILLED = 128 + 9
# The record of the executors comes before the task's own outputs.
_OUR_OUTPUTS = 1
# By number of the attempt: what the executors did, as the program on the node wrote it.
ExecutorRecords = Mapping[int, Sequence[dict[str, Any]]]


class View(StrEnum):
    """How much of a task is shown."""

    MINIMAL = "MINIMAL"
    BASIC = "BASIC"
    FULL = "FULL"


def minimal(job: Job) -> dict[str, Any]:
    """Id and state."""
    return {"id": job.uid, "state": task_state(job.status)}


def detailed(job: Job, view: View, records: ExecutorRecords) -> dict[str, Any]:
    """All of a task, in the basic view without contents and what was printed."""
    told = _told(job.spec)
    document = told["task"]
    if view is View.FULL:
        _add_contents(document, job.spec)
    logs = [
        _task_log(attempt, document, records.get(attempt.number, ()), told["warnings"], view)
        for attempt in job.attempts
    ]
    return {**document, **minimal(job), "creation_time": _time(job.create_time), "logs": logs}


def _told(spec: JobSpec) -> Any:
    content = next(one.inline_content for one in spec.inputs if one.path == TASK_FILE)
    return json.loads(content)


def _add_contents(document: dict[str, Any], spec: JobSpec) -> None:
    inline = {one.path: one for one in spec.inputs if one.WhichOneof("source") == "inline_content"}
    for one in document.get("inputs", []):
        if (found := inline.get(ROOT + one["path"])) is not None:
            one["content"] = found.inline_content.decode()


def _task_log(
    attempt: Attempt, task: dict[str, Any], records: Sequence[dict[str, Any]], warnings: Sequence[str], view: View
) -> dict[str, Any]:
    metadata = {
        "attempt": str(attempt.number),
        "backend": attempt.backend,
        "native_id": attempt.native_id,
        "queue": attempt.queue,
        "node": attempt.node,
        "site": attempt.site,
    }
    log: dict[str, Any] = {
        "logs": [_executor_log(record, attempt, view) for record in records],
        "outputs": [_output(file, task) for file in attempt.outputs if not file.sandbox],
        "metadata": {key: value for key, value in metadata.items() if value},
    }
    if attempt.HasField("start_time"):
        log["start_time"] = _time(attempt.start_time)
    if attempt.HasField("end_time"):
        log["end_time"] = _time(attempt.end_time)
    if view is View.FULL:
        log["system_logs"] = [*warnings, *filter(None, [attempt.message])]
    return log


def _executor_log(record: dict[str, Any], attempt: Attempt, view: View) -> dict[str, Any]:
    code = record.get("exit_code", 128 + attempt.signal if attempt.signal else _KILLED)
    shown = ("start_time", "end_time", *(("stdout", "stderr") if view is View.FULL else ()))
    return {"exit_code": code, **{key: record[key] for key in shown if key in record}}


def _output(file: OutputFile, task: dict[str, Any]) -> dict[str, Any]:
    asked = task["outputs"][file.output - _OUR_OUTPUTS]["url"]
    scheme = "" if asked.startswith("/") else "khomas://"
    return {
        "url": f"{scheme}{file.name}",
        "path": file.path.removeprefix(ROOT),
        "size_bytes": str(file.size_bytes),
    }


def _time(moment: Timestamp) -> str:
    return moment.ToJsonString()
