"""Rules of a spec that its annotations cannot say."""

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from khomas.api.scheduler.v1.job_spec_pb2 import Input, JobSpec, Output
from khomas.kit.auth.paths import odd_path
from khomas.kit.errors import FieldInvalid, FieldViolation
from khomas.scheduler.errors import NoJobs, TooManyJobs
from khomas.scheduler.intake.blueprint import Blueprint, Identity
from khomas.scheduler.lifecycle.bounds import LONGEST
from khomas.scheduler.manifest import is_sandbox

_DEFAULT_MAX_JOBS = 10_000_000


def check_spec(spec: JobSpec, field: str) -> None:
    """Raise `FieldInvalid` with everything that is wrong in the spec by itself."""
    found = [FieldViolation(f"{field}.{part}", why) for part, why in _violations(spec)]
    if found:
        raise FieldInvalid.all_of(found)


def check_size(blueprint: Blueprint) -> int:
    """How many jobs the spec makes. Raises `NoJobs` and `TooManyJobs`."""
    jobs, most = len(blueprint), blueprint.spec.splitter.max_jobs or _DEFAULT_MAX_JOBS
    if jobs == 0:
        raise NoJobs
    if jobs > most:
        raise TooManyJobs(jobs=jobs, max_jobs=most)
    return jobs


def try_out(blueprint: Blueprint, job: str, field: str) -> None:
    """Make the first and the last job in mind, so that what cannot be filled in is refused now."""
    for index in {0, len(blueprint) - 1}:
        child = blueprint.child(index)
        values = blueprint.values(child, Identity(job, index))
        blueprint.command(child, values)
        blueprint.environment(child, values)
        blueprint.inputs(child, values, {})
        for number, output in enumerate(blueprint.spec.outputs):
            blueprint.output_metadata(number, "file", values)
            name = blueprint.output_name(number, "file", values)
            if not is_sandbox(output) and odd_path([name]) is not None:
                raise FieldInvalid.of(f"{field}.outputs[{number}].name_pattern", f"{name!r} is no absolute name")


def _violations(spec: JobSpec) -> Iterator[tuple[str, str]]:
    yield from _limits(spec)
    if b"\0" in spec.SerializeToString():  # most have none
        yield from ((part, "must not contain the sign NUL") for part in _with_nul(spec))
    for number, source in enumerate(spec.inputs):
        yield from ((f"inputs[{number}].{part}", why) for part, why in _input(source))
    for number, output in enumerate(spec.outputs):
        yield from ((f"outputs[{number}].{part}", why) for part, why in _output(output))
    for number, rule in enumerate(spec.retry.rules):
        if rule.log_regex and (why := _bad_regex(rule.log_regex)):
            yield f"retry.rules[{number}].log_regex", why
    if spec.mergers and not spec.HasField("splitter"):
        yield "mergers", "only an array has outputs to merge; add a splitter"
    if spec.HasField("splitter") and spec.splitter.WhichOneof("kind") == "files" and not _has_files(spec):
        yield "splitter.files", "there is no input of files to divide; add one by file, dataset or query"


def _limits(spec: JobSpec) -> Iterator[tuple[str, str]]:
    times: list[tuple[str, Duration]] = [
        ("resources.wall_time", spec.resources.wall_time),
        ("resources.cpu_time", spec.resources.cpu_time),
        ("limits.kill_grace", spec.limits.kill_grace),
        ("limits.heartbeat_timeout", spec.limits.heartbeat_timeout),
        ("limits.efficiency_window", spec.limits.efficiency_window),
        ("limits.slow_answer_time", spec.limits.slow_answer_time),
        ("retain_after_end", spec.retain_after_end),
        ("retry.initial_backoff", spec.retry.initial_backoff),
        ("retry.max_backoff", spec.retry.max_backoff),
    ]
    for part, duration in times:
        if duration.seconds < 0 or duration.nanos < 0:
            yield part, "must not be negative"
        elif duration.seconds > LONGEST.total_seconds():
            yield part, f"must be at most {LONGEST.days} days"
    if 0 < spec.retry.multiplier < 1:
        yield "retry.multiplier", "must be at least 1: pauses do not shrink"


def _with_nul(message: Message, at: str = "") -> Iterator[str]:
    """Texts that a database would not take, or a program not get."""
    for field, value in message.ListFields():
        part = f"{at}{field.name}"
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for key, one in value.items():
                yield from _nul_in(one, f"{part}[{key!r}]")
                yield from _nul_in(key, f"{part}[{key!r}]")
        elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
            for number, one in enumerate(value):
                yield from _nul_in(one, f"{part}[{number}]")
        else:
            yield from _nul_in(value, part)


def _nul_in(value: object, part: str) -> Iterator[str]:
    if isinstance(value, Message):
        yield from _with_nul(value, f"{part}.")
    elif isinstance(value, str) and "\0" in value:
        yield part


def _input(source: Input) -> Iterator[tuple[str, str]]:
    if source.path and _leads_out(source.path):
        yield "path", f"{source.path!r} must be relative and stay in the work directory"
    kind = source.WhichOneof("source")
    if kind == "inline_content" and (not source.path or source.path.endswith("/")):
        yield "path", "say what the file is called"
    if kind == "sandbox" and "/" in source.sandbox.name:
        yield "sandbox.name", "a file name has no slash; use `path` for a directory"
    if kind == "job_outputs" and not re.fullmatch(r"jobs/[0-9a-f-]{36}(/\d+)?", source.job_outputs):
        yield "job_outputs", "write it as jobs/{uid} or jobs/{uid}/{index}"


def _output(output: Output) -> Iterator[tuple[str, str]]:
    if _leads_out(output.glob):
        yield "glob", f"{output.glob!r} must be relative and stay in the work directory"
    if output.name_pattern and not output.name_pattern.startswith("/"):
        yield "name_pattern", "must be absolute: /vo/directory/{file}"
    if output.name_pattern and output.when == Output.WHEN_ON_FAILURE:
        yield "name_pattern", "files of failed jobs go to the sandbox only; leave the name out"
    if output.max_files and output.max_files < max(1, output.min_files):
        yield "max_files", f"is less than min_files, {max(1, output.min_files)}"
    if output.max_bytes and output.max_bytes < output.min_bytes:
        yield "max_bytes", f"is less than min_bytes, {output.min_bytes}"


def _leads_out(path: str) -> bool:
    return path.startswith("/") or ".." in PurePosixPath(path).parts or "\0" in path


def _bad_regex(pattern: str) -> str:
    try:
        re.compile(pattern.encode())
    except re.error as error:
        return f"is no regular expression: {error}"
    return ""


def _has_files(spec: JobSpec) -> bool:
    return any(source.WhichOneof("source") in ("file", "dataset", "query") for source in spec.inputs)
