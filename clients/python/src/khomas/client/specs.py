"""Job files and production files as people write them, to the messages of the contract."""

import difflib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.duration_pb2 import Duration

from khomas.api.bookkeeping.v1 import production_pb2 as prod
from khomas.api.scheduler.v1 import job_spec_pb2 as job
from khomas.api.scheduler.v1 import placement_pb2, state_pb2
from khomas.client.document import Document
from khomas.client.errors import UsageError
from khomas.client.splitting import grid, splitter
from khomas.client.units import MOST_INT32, count, duration, number, size

MAX_SANDBOX_BYTES = 10 * 1024 * 1024
SLOW_ACTIONS = {"flag": 1, "notify": 2, "kill": 3}
ACTIONS = {"retry": 1, "fail": 2, "retry_uncounted": 3, "grow": 4, "hold": 5}


@dataclass(slots=True)
class Sandboxes:
    """Local files that a spec refers to, by the SHA-256 of their content."""

    folder: Path
    contents: dict[str, bytes] = field(default_factory=dict)

    def add(self, path: str) -> job.SandboxFile:
        """Take a file in; paths are relative to the folder of the document."""
        found = self.folder / path
        try:
            content = found.read_bytes()
        except OSError as error:
            raise UsageError(f"files: cannot read {found}: {error.strerror}") from error
        if len(content) > MAX_SANDBOX_BYTES:
            raise UsageError(f"files: {found} is larger than 10 MiB; `khomas put` it and name it under inputs")
        digest = hashlib.sha256(content).hexdigest()
        self.contents[digest] = content
        return job.SandboxFile(sha256=digest, name=found.name, size_bytes=len(content))

    def executable(self, path: str) -> bool:
        """Tell whether a file has its executable bit."""
        return bool((self.folder / path).stat().st_mode & 0o100)


def job_spec(content: object, sandboxes: Sandboxes, place: str = "job") -> job.JobSpec:
    """Read a job document. Raises UsageError that names the key and what is wrong."""
    document = Document(content, place)
    spec = job.JobSpec(display_name=document.text("name"), note=document.text("note"), tags=document.texts("tags"))
    spec.command.CopyFrom(_command(document))
    spec.resources.CopyFrom(_resources(document))
    for path in document.list("files"):
        found = sandboxes.add(str(path))
        spec.inputs.add(sandbox=found, path=found.name, executable=sandboxes.executable(str(path)))
    spec.inputs.extend(_input(Document(one, f"{place}.inputs")) for one in document.list("inputs"))
    spec.outputs.extend(_output(Document(one, f"{place}.outputs")) for one in document.list("outputs"))
    if (split := document.inner("split")) is not None:
        spec.splitter.CopyFrom(splitter(split))
    for one in document.list("merge"):
        spec.mergers.append(_merger(Document(one, f"{place}.merge"), sandboxes))
    _placement(document, spec)
    for one in document.list("after"):
        spec.dependencies.add(job=_job_name(str(one)))
    if (retry := document.inner("retry")) is not None:
        spec.retry.CopyFrom(_retry(retry))
    spec.priority = document.whole("priority")
    _limits(document, spec)
    spec.share = document.text("share")
    if (keep := document.take("retain")) is not None:
        spec.retain_after_end.CopyFrom(_seconds(keep, "retain"))
    document.done()
    return spec


def _placement(document: Document, spec: job.JobSpec) -> None:
    spec.placement.backends.extend(str(backend) for backend in document.list("on"))
    spec.placement.queue = document.text("queue")
    spec.placement.require_data_local = bool(document.take("require_local_data", False))
    if platform := document.text("platform"):
        spec.environment.platform = platform
    native = document.take("native", {})
    if not isinstance(native, Mapping) or not all(isinstance(options, Mapping) for options in native.values()):
        raise UsageError(f"{document.place}: native takes options by the kind of backend: {{slurm: {{qos: long}}}}")
    for kind, options in native.items():
        spec.placement.native[str(kind)].update({str(name): value for name, value in options.items()})


def _limits(document: Document, spec: job.JobSpec) -> None:
    if (log := document.take("max_log")) is not None:
        spec.logs.max_bytes = size(log, "max_log")
    if (grace := document.take("kill_grace")) is not None:
        spec.limits.kill_grace.CopyFrom(_seconds(grace, "kill_grace"))
    if (slow := document.inner("slow")) is not None:
        _slow(slow, spec.limits)


def _command(document: Document) -> job.Command:
    command = job.Command(env=document.texts("env"), inherit_env=bool(document.take("inherit_env", False)))
    run = document.need("run")
    words = [str(word) for word in run] if isinstance(run, Sequence) and not isinstance(run, str) else [str(run)]
    if isinstance(run, str) and " " in run.strip():
        raise UsageError(f"{document.place}: run takes a list of words, no shell reads it: [sh, -c, {run!r}]")
    command.executable = words[0]
    command.arguments.extend(words[1:])
    command.pre_command = document.text("pre")
    command.post_command = document.text("post")
    command.success_exit_codes.extend(
        count(code, "success_exit_codes", MOST_INT32) for code in document.list("success_exit_codes")
    )
    return command


def _resources(document: Document) -> job.Resources:
    resources = job.Resources()
    resources.automatic = bool(document.take("automatic", False))
    if (cpus := document.take("cpus")) is not None:
        resources.cpu_milli = count(round(number(cpus, "cpus") * 1000), "cpus", MOST_INT32)
    if (memory := document.take("memory")) is not None:
        resources.memory_bytes = size(memory, "memory")
    if (disk := document.take("disk")) is not None:
        resources.disk_bytes = size(disk, "disk")
    if (wall := document.take("wall")) is not None:
        resources.wall_time.CopyFrom(_seconds(wall, "wall"))
    if (cpu_time := document.take("cpu_time")) is not None:
        resources.cpu_time.CopyFrom(_seconds(cpu_time, "cpu_time"))
    return resources


def _input(document: Document) -> job.Input:
    made = job.Input(
        path=document.text("path"), match=document.text("match"), executable=bool(document.take("executable", False))
    )
    sources: dict[str, Callable[[str], dict[str, Any]]] = {
        "file": lambda text: {"file": text},
        "dataset": lambda text: {"dataset": dataset_name(text)},
        "query": lambda text: {"query": text},
        "content": lambda text: {"inline_content": text.encode()},
        "job": lambda text: {"job_outputs": _job_name(text)},
    }
    if (digest := document.take("sandbox")) is not None:
        # As `khomas export` writes it; the content is stored already.
        name, length = made.path or str(digest)[:12], document.whole("size")
        made.sandbox.CopyFrom(job.SandboxFile(sha256=str(digest), name=name, size_bytes=length))
        document.done()
        return made
    given = {key: document.text(key) for key in sources if document.take(key) is not None}
    document.done()
    if len(given) != 1:
        raise UsageError(f"{document.place}: name one of {', '.join(sources)}")
    ((key, text),) = given.items()
    made.MergeFrom(job.Input(**sources[key](text)))
    return made


def _output(document: Document) -> job.Output:
    made = job.Output(
        glob=str(document.need("glob")),
        name_pattern=document.text("name"),
        storage_elements=[str(one) for one in document.list("se")],
        datasets=[dataset_name(str(one)) for one in document.list("dataset")],
        metadata=document.texts("metadata"),
        header_metadata=[str(one) for one in document.list("headers")],
        min_files=document.whole("min_files"),
        max_files=document.whole("max_files"),
    )
    if (least := document.take("min_bytes")) is not None:
        made.min_bytes = least if isinstance(least, int) else size(least, "min_bytes")
    if (most := document.take("max_bytes")) is not None:
        made.max_bytes = size(most, "max_bytes")
    if (fits := document.inner("fits")) is not None:
        made.fits.hdus.extend(str(one) for one in fits.list("hdus"))
        made.fits.tables.extend(str(one) for one in fits.list("tables"))
        made.fits.SetInParent()
        fits.done()
    when = document.text("when", "unspecified").upper()
    try:
        made.when = job.Output.When.Value(f"WHEN_{when}")
    except ValueError:
        raise UsageError(f"{document.place}: when is on_success, always or on_failure, not {when.lower()}") from None
    document.done()
    return made


def _merger(document: Document, sandboxes: Sandboxes) -> job.Merger:
    made = job.Merger(match=document.text("match"), min_fraction=document.number("min_fraction"))
    if (text := document.inner("text")) is not None:
        made.text.path = text.text("path", "merged.txt")
        made.text.headers = bool(text.take("headers", False))
        text.done()
    else:
        made.command.CopyFrom(_command(document))
    made.resources.CopyFrom(_resources(document))
    for path in document.list("files"):
        found = sandboxes.add(str(path))
        made.inputs.add(sandbox=found, path=found.name, executable=sandboxes.executable(str(path)))
    made.inputs.extend(_input(Document(one, f"{document.place}.inputs")) for one in document.list("inputs"))
    made.outputs.extend(_output(Document(one, f"{document.place}.outputs")) for one in document.list("outputs"))
    document.done()
    return made


def _retry(document: Document) -> placement_pb2.RetryPolicy:
    made = placement_pb2.RetryPolicy(max_attempts=document.whole("max_attempts"))
    if (pause := document.take("backoff")) is not None:
        made.initial_backoff.CopyFrom(_seconds(pause, "backoff"))
    if document.take("jitter") is not None:
        made.jitter = document.number("jitter")
    made.avoid_failed_nodes = bool(document.take("avoid_failed_nodes", False))
    made.avoid_failed_backend = bool(document.take("avoid_failed_backend", False))
    for one in document.list("rules"):
        rule = Document(one, f"{document.place}.rules")
        action = rule.text("action", "retry")
        if action not in ACTIONS:
            raise UsageError(f"{rule.place}: action is one of {', '.join(ACTIONS)}, not {action}")
        made.rules.add(
            reasons=[reason(str(name)) for name in rule.list("reason")],
            exit_codes=[count(code, "exit_code", MOST_INT32) for code in rule.list("exit_code")],
            log_regex=rule.text("log"),
            action=placement_pb2.RetryRule.Action.ValueType(ACTIONS[action]),
            grow_memory=rule.number("memory"),
            grow_wall=rule.number("wall"),
        )
        rule.done()
    document.done()
    return made


def _slow(document: Document, limits: job.Limits) -> None:
    limits.min_cpu_efficiency = number(document.need("efficiency"), "efficiency")
    action = document.text("action", "flag")
    if action not in SLOW_ACTIONS:
        raise UsageError(f"{document.place}: action is one of {', '.join(SLOW_ACTIONS)}, not {action}")
    limits.slow_action = job.Limits.SlowAction.ValueType(SLOW_ACTIONS[action])
    if (window := document.take("window")) is not None:
        limits.efficiency_window.CopyFrom(_seconds(window, "window"))
    if (answer := document.take("answer")) is not None:
        limits.slow_answer_time.CopyFrom(_seconds(answer, "answer"))
    document.done()


def reason(name: str) -> state_pb2.Reason.ValueType:
    """Read "LIMIT_MEMORY"; raises UsageError with all names, the most like it first."""
    names = [known.removeprefix("REASON_") for known, number in state_pb2.Reason.items() if number]
    if name.upper() not in names:
        near = difflib.get_close_matches(name.upper(), names, 3)
        raise UsageError(f"there is no reason {name}; choose from {', '.join(dict.fromkeys([*near, *names]))}")
    return state_pb2.Reason.Value(f"REASON_{name.upper()}")


def production(content: object, sandboxes: Sandboxes) -> prod.Production:
    """Read a production document."""
    document = Document(content, "production")
    made = prod.Production(
        name=f"productions/{document.need('name')}",
        description=document.text("description"),
        tags=document.texts("tags"),
        priority=document.whole("priority"),
    )
    for one in document.list("stages"):
        made.stages.append(_stage(Document(one, "stages"), sandboxes))
    document.done()
    return made


def _stage(document: Document, sandboxes: Sandboxes) -> prod.Stage:
    name = str(document.need("name"))
    made = prod.Stage(name=name, after=[str(one) for one in document.list("after")])
    template = document.need("job")
    made.job.CopyFrom(job_spec({"name": name, **template} if isinstance(template, Mapping) else template, sandboxes))
    if document.take("grid") is not None:
        made.grid.grid.CopyFrom(grid(document))
        made.grid.requested_events = str(document.need("requested_events"))
        made.grid.events_per_job = str(document.need("events_per_job"))
        made.grid.max_jobs_per_cell = document.whole("max_jobs_per_cell")
        if document.text("count", "reported") == "planned":
            made.grid.count = prod.GridSource.COUNT_PLANNED
    else:
        data = document.inner("data")
        if data is None:
            raise UsageError(f"stages.{name}: name what it works on, data or grid")
        made.data.CopyFrom(_data(data))
    made.max_active_jobs = document.whole("max_active_jobs")
    made.pause_above_failure_rate = document.number("pause_above_failure_rate")
    made.failure_window_jobs = document.whole("failure_window_jobs")
    document.done()
    return made


def _data(document: Document) -> prod.DataSource:
    made = prod.DataSource(
        dataset=dataset_name(document.text("dataset")),
        directory=document.text("directory"),
        filter=document.text("filter"),
        match=document.text("match"),
        group_by=document.text("group_by"),
        min_files=document.whole("min_files"),
        max_files=document.whole("max_files"),
        max_tries=document.whole("max_tries"),
        complete_when_drained=bool(document.take("complete_when_drained", False)),
        path=document.text("path"),
    )
    for key in ("settle", "flush_after"):
        if (pause := document.take(key)) is not None:
            getattr(made, key).CopyFrom(_seconds(pause, key))
    document.done()
    return made


def dataset_name(text: str) -> str:
    """Return the resource name of a dataset that may be given without "datasets/"."""
    return text if not text or text.startswith("datasets/") else f"datasets/{text}"


def _job_name(text: str) -> str:
    return text if text.startswith("jobs/") else f"jobs/{text}"


def _seconds(text: Any, what: str) -> Duration:
    made = Duration()
    made.FromTimedelta(duration(text, what))
    return made
