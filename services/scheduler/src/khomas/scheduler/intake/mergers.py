"""Mergers: ordinary jobs that depend on an array and read its outputs."""

from khomas.api.scheduler.v1.job_spec_pb2 import Input, JobSpec, Merger, Output
from khomas.kit.errors import FieldInvalid

FOLDER = "inputs/"
# What a merger finds in its work directory: what to merge, in the order of the children, and what is missing.
LISTING = "inputs.json"
_PROGRAM = "khomas_merge.py"
_CONCATENATE = b'''"""Concatenate the listed files: khomas_merge.py TARGET [--headers]."""

import json
import shutil
import sys

with open("inputs.json") as listing, open(sys.argv[1], "wb") as target:
    for entry in json.load(listing)["inputs"]:
        if "--headers" in sys.argv[2:]:
            target.write(("# %s\\n" % entry["job"]).encode())
        with open(entry["path"], "rb") as part:
            shutil.copyfileobj(part, target)
'''


def merger_spec(array: JobSpec, merger: Merger, array_name: str, field: str) -> JobSpec:
    """The spec of the merger job of an array."""
    spec = JobSpec(
        display_name=f"merge {array.display_name}".strip(),
        tags=array.tags,
        resources=merger.resources,
        placement=array.placement,
        retry=array.retry,
        priority=array.priority,
        inputs=[Input(job_outputs=array_name, path=FOLDER, match=merger.match), *merger.inputs],
        outputs=merger.outputs,
        command=merger.command,
    )
    if merger.WhichOneof("builtin") == "text":
        _use_concatenation(spec, merger, field)
    elif not merger.command.executable:
        raise FieldInvalid.of(f"{field}.command", "say what merges: a command, or the builtin `text`")
    return spec


def _use_concatenation(spec: JobSpec, merger: Merger, field: str) -> None:
    target = merger.text.path
    if not target:
        raise FieldInvalid.of(f"{field}.text.path", "name the file that it makes")
    if merger.command.executable:
        raise FieldInvalid.of(f"{field}.command", "leave it out with a builtin merger")
    headers = ["--headers"] if merger.text.headers else []
    spec.command.executable = "python3"
    spec.command.arguments[:] = [_PROGRAM, target.replace("{", "{{").replace("}", "}}"), *headers]
    spec.inputs.add(inline_content=_CONCATENATE, path=_PROGRAM)
    if not spec.outputs:
        spec.outputs.append(Output(glob=target))
