"""From a task to a job that does it."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct

from khomas.api.scheduler.v1 import job_spec_pb2 as pb
from khomas.api.scheduler.v1.placement_pb2 import Placement
from khomas.kit.errors import FieldInvalid
from khomas.scheduler.tes.documents import FileType, Input, Output, Resources, Task, parent_of, written
from khomas.scheduler.wrapper import TES_EXECUTORS

# In the work directory of the job.
ROOT = "root"
TASK_FILE, LOG_FILE, PROGRAM_FILE = ".khomas-tes/task.json", ".khomas-tes/log.json", ".khomas-tes/run.py"
# Tells the jobs that are tasks from the others.
TAG, VERSION = "tes", "1.1"
PARAMETERS = ("backend", "queue", "share", "priority", "wall_time")
_MOST_TASK_BYTES = 128 * 1024
_GB = 10**9
_LONGEST_NAME, _LONGEST_NOTE = 128, 4096
_KEY = re.compile(r"[a-z][a-z0-9_]{0,62}")
_WILDCARD = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class Program:
    """What runs the executors on the node."""

    content: bytes
    sha256: str


@cache
def program() -> Program:
    """The program, read once."""
    content = TES_EXECUTORS.read_bytes()
    return Program(content, hashlib.sha256(content).hexdigest())


def job_of(task: Task, images: Mapping[str, str]) -> pb.JobSpec:
    """The spec of a task. Raises `FieldInvalid` for what cannot be done here."""
    resources = task.resources or Resources()
    parameters, unknown = _parameters(resources)
    spec = pb.JobSpec(
        display_name=(task.name or "")[:_LONGEST_NAME],
        note=(task.description or "")[:_LONGEST_NOTE],
        tags={TAG: VERSION, **{tag_key(key): value for key, value in (task.tags or {}).items()}},
        command=pb.Command(executable="python3", arguments=[PROGRAM_FILE, TASK_FILE, LOG_FILE]),
        environment=pb.SoftwareEnvironment(platform=_platform(task, images)),
        inputs=[_task_file(task, unknown), _program_file(), *_inputs(task.inputs or ())],
        outputs=[_log_file(), *_outputs(task.outputs or ())],
    )
    _needs(spec, resources, parameters)
    return spec


def tag_key(key: str) -> str:
    """The tag of a job that a tag of a task is: the key itself where it can be, else what is like it and unique."""
    if _KEY.fullmatch(key) and key != TAG:
        return key
    like = re.sub(r"[^a-z0-9]+", "_", key.lower()).strip("_")[:40]
    return f"tes_{like}_{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def lfn_of(url: str) -> str | None:
    """The name in the catalogue that a URL stands for: "khomas:///vo/file" or "/vo/file"; None for other URLs."""
    name = url.removeprefix("khomas://")
    return name if name.startswith("/") else None


def _task_file(task: Task, unknown: Sequence[str]) -> pb.Input:
    """All that the executors need, and all that answers are made of; contents of inputs are inputs of the job."""
    told = {
        "task": _stored(task, unknown),
        "names": sorted(set(_names(task))),
        "directories": sorted(set(_directories(task))),
        "warnings": [f"backend_parameters: {key} is not known here and was left out" for key in unknown],
    }
    content = json.dumps(told, ensure_ascii=False).encode()
    if len(content) > _MOST_TASK_BYTES:
        raise FieldInvalid.of(
            "task", f"has {len(content)} bytes beside the contents of inputs, at most {_MOST_TASK_BYTES} are taken"
        )
    return pb.Input(path=TASK_FILE, inline_content=content)


def _stored(task: Task, unknown: Sequence[str]) -> dict[str, Any]:
    document = written(task)
    for one in document.get("inputs", []):
        one.pop("content", None)
    for key in unknown:
        del document["resources"]["backend_parameters"][key]
    return document


def _program_file() -> pb.Input:
    file = pb.SandboxFile(sha256=program().sha256, name="run.py", size_bytes=len(program().content))
    return pb.Input(path=PROGRAM_FILE, sandbox=file)


def _log_file() -> pb.Output:
    return pb.Output(glob=LOG_FILE, min_files=-1, when=pb.Output.WHEN_ALWAYS)


def _names(task: Task) -> Iterator[str]:
    """Paths that mean the task's own files: directories of what it declares, single files at the top."""
    paths = [one.path for one in task.inputs or ()] + [one.path for one in task.outputs or ()]
    for executor in task.executors:
        paths += filter(None, (executor.stdin, executor.stdout, executor.stderr))
        yield from filter(None, [executor.workdir])
    yield from (parent_of(_before_wildcards(path)) or path for path in paths)
    yield from task.volumes or ()


def _directories(task: Task) -> Iterator[str]:
    """Those that must be there before the first executor."""
    for executor in task.executors:
        yield from (parent_of(path) for path in (executor.stdout, executor.stderr) if path)
        yield from filter(None, [executor.workdir])
    yield from (parent_of(_before_wildcards(one.path)) for one in task.outputs or ())
    yield from task.volumes or ()


def _before_wildcards(path: str) -> str:
    """The path up to its first segment with a wildcard, that included."""
    segments = path.split("/")
    fixed = next((number for number, one in enumerate(segments) if _WILDCARD.search(one)), len(segments))
    return "/".join(segments[: fixed + 1])


def _inputs(inputs: Sequence[Input]) -> Iterator[pb.Input]:
    for number, one in enumerate(inputs):
        field = f"inputs[{number}]"
        if one.type is FileType.DIRECTORY:
            raise FieldInvalid.of(f"{field}.type", "directories are not brought in; name every file")
        path = ROOT + one.path
        if one.content or (one.content is not None and not one.url):
            yield pb.Input(path=path, inline_content=one.content.encode())
        else:
            yield pb.Input(path=path, file=_literal(_lfn(one.url or "", f"{field}.url")))


def _outputs(outputs: Sequence[Output]) -> Iterator[pb.Output]:
    for number, one in enumerate(outputs):
        field = f"outputs[{number}]"
        if one.type is FileType.DIRECTORY:
            raise FieldInvalid.of(
                f"{field}.type", "directories are not brought out; give a path with a wildcard: /out/*"
            )
        name = _literal(_lfn(one.url, f"{field}.url").rstrip("/"))
        if _WILDCARD.search(one.path):
            yield pb.Output(glob=ROOT + one.path, name_pattern=f"{name}{_below(one, field)}/{{file}}")
        else:
            yield pb.Output(glob=ROOT + one.path, name_pattern=name, max_files=1)


def _below(output: Output, field: str) -> str:
    """The directory below the URL that the files of a pattern go to."""
    directory = parent_of(output.path)
    if _WILDCARD.search(directory):
        raise FieldInvalid.of(f"{field}.path", "only its last segment may have wildcards")
    prefix = output.path_prefix
    if prefix is None or not f"{directory}/".startswith(f"{prefix}/"):
        raise FieldInvalid.of(f"{field}.path_prefix", f"with wildcards it must be {directory or '/'} or a parent of it")
    return _literal(directory.removeprefix(prefix))


def _lfn(url: str, field: str) -> str:
    name = lfn_of(url)
    if name is None:
        why = "must be a file of the catalogue, khomas:///vo/directory/file; bring others in by `khomas put`"
        raise FieldInvalid.of(field, f"{url[:200]!r} {why}")
    return name


def _platform(task: Task, images: Mapping[str, str]) -> str:
    """The platform that the images stand for."""
    found = {_platform_of(one.image, images, f"executors[{number}].image") for number, one in enumerate(task.executors)}
    if len(found) > 1:
        raise FieldInvalid.of(
            "executors", f"all run on one node, but their images stand for {', '.join(sorted(found))}"
        )
    return found.pop()


def _platform_of(image: str, images: Mapping[str, str], field: str) -> str:
    if not image:
        return ""
    for pattern, platform in images.items():
        if fnmatchcase(image, pattern):
            return platform
    known = ", ".join(images) or "none"
    why = f"tasks run without a container, and {image[:200]!r} stands for no platform of the nodes; there are: {known}"
    raise FieldInvalid.of(field, f"{why}. Leave it empty for any node, or ask the operator")


def _parameters(resources: Resources) -> tuple[dict[str, str], list[str]]:
    """The parameters that are known, by name in lower case, and the names of the others."""
    known, unknown = {}, []
    for key, value in (resources.backend_parameters or {}).items():
        name = key.lower()
        if name in PARAMETERS:
            known[name] = value
        elif "." in name:
            # Batch systems tell large letters from small ones.
            known[key] = value
        else:
            unknown.append(key)
    if unknown and resources.backend_parameters_strict:
        raise FieldInvalid.of(
            "resources.backend_parameters",
            f"{', '.join(unknown)} is not known; there are {', '.join(PARAMETERS)} and <kind of backend>.<option>",
        )
    return known, unknown


def _needs(spec: pb.JobSpec, resources: Resources, parameters: Mapping[str, str]) -> None:
    spec.resources.cpu_milli = 1000 * (resources.cpu_cores or 0)
    spec.resources.memory_bytes = round((resources.ram_gb or 0) * _GB)
    spec.resources.disk_bytes = round((resources.disk_gb or 0) * _GB)
    if "wall_time" in parameters:
        spec.resources.wall_time.CopyFrom(_duration(parameters["wall_time"]))
    spec.placement.CopyFrom(
        Placement(
            backends=[name.strip() for name in parameters.get("backend", "").split(",") if name.strip()],
            sites=resources.zones or [],
            queue=parameters.get("queue", ""),
            native=_native(parameters),
        )
    )
    spec.share = parameters.get("share", "")
    spec.priority = _number(parameters.get("priority", "0"))


def _native(parameters: Mapping[str, str]) -> dict[str, Struct]:
    options: dict[str, Struct] = {}
    for key, value in parameters.items():
        kind, dot, option = key.partition(".")
        if dot:
            options.setdefault(kind, Struct()).update({option: value})
    return options


def _duration(text: str) -> Duration:
    duration = Duration()
    try:
        duration.FromJsonString(text)
    except ValueError:
        raise FieldInvalid.of("resources.backend_parameters.wall_time", 'must be seconds: "3600s"') from None
    return duration


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise FieldInvalid.of("resources.backend_parameters.priority", "must be a whole number") from None


def _literal(text: str) -> str:
    """Text in which nothing is filled in."""
    return text.replace("{", "{{").replace("}", "}}")
